"""Reward models: the frozen network of a reward run or of its export, and how its scores are standardised."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mmjobs.checkpoint.train_state import TrainState
from mmjobs.data.batch import Batch
from mmjobs.engine.engine import Engine
from mmjobs.engine.frozen import frozen_model
from mmjobs.model import adapters
from mmjobs.model.build import BuiltModel
from mmjobs.model.heads import STATISTICS
from mmjobs.objectives.forward import hidden_states
from mmjobs.rank.context import Context
from mmjobs.rollout.reward_model import RewardModel
from mmjobs.train.setup import build_network
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.recipe.rewards import RewardSource
from mmlaunch.run.paths import CheckpointPaths, of_checkpoint


@dataclass(frozen=True)
class RewardNetwork:
    """A reward model that is built, and not yet frozen."""

    model: BuiltModel
    mean: float
    spread: float
    """Of its rewards in its own training; 0 and 1 leave scores as they are."""

    def frozen(self, context: Context) -> RewardModel:
        """The model as it scores answers."""
        network = frozen_model(self.model.network, context.recipe.precision, context.deepspeed)
        return RewardModel(network, self.mean, self.spread)


def build_reward_network(context: Context, source: RewardSource) -> RewardNetwork:
    """The network that a source of rewards names."""
    folder = Path(str(source.path))
    recipe, mean, spread = _of_run(context.recipe, folder)
    nothing = {"vision": "frozen", "projector": "frozen", "language": "frozen", "embeddings": False}
    frozen = recipe.model.train.model_copy(update={**nothing, "vision_layers": None})
    model = recipe.model.model_copy(update={"init_from": str(folder), "lora": None, "train": frozen})
    built = build_network(context.recipe.model_copy(update={"model": model}), context.deepspeed, scoring_head=True)
    given = (mean, spread or 1.0) if source.standardise else (0.0, 1.0)
    return RewardNetwork(built, *given)


class CriticWithoutAdapter(nn.Module):
    """The backbone that a critic has in common with its reward model: called as a frozen model is."""

    def __init__(self, critic: Engine, head: torch.Tensor) -> None:
        super().__init__()
        self._critic, self._head = critic, head

    def forward(self, read: Callable[[nn.Module, Batch], torch.Tensor], batch: Batch) -> torch.Tensor:
        """What `read` would say of the reward model: the scores of all answers."""

        def scores(network: nn.Module, batch: Batch) -> torch.Tensor:
            with adapters.off(network):
                hidden = hidden_states(network, batch, batch.answers.last)
            exact = hidden if hidden.dtype == torch.float64 else hidden.float()
            with torch.autocast(hidden.device.type, enabled=False):
                return nn.functional.linear(exact, self._head.to(exact)).squeeze(-1)

        return self._critic.compute(batch, scores)


def shared_reward_model(context: Context, source: RewardSource, critic: Engine, head: torch.Tensor) -> RewardModel:
    """The reward model that a critic has started from, without weights of its own."""
    _, mean, spread = _of_run(context.recipe, Path(str(source.path)))
    given = (mean, spread or 1.0) if source.standardise else (0.0, 1.0)
    return RewardModel(CriticWithoutAdapter(critic, head), *given)


def _of_run(recipe: Recipe, folder: Path) -> tuple[Recipe, float, float]:
    """The recipe of a reward model, the mean and the spread of its rewards; raises `BadInput` where it is none."""
    what = f"objective.rewards: {folder} is no reward model: it has no scoring head"
    checkpoint = of_checkpoint(folder)
    if checkpoint is None:
        if not (folder / STATISTICS).is_file():
            raise BadInput(f"{what}; name a run of objective: reward, or its export")
        kept = json.loads((folder / STATISTICS).read_text(encoding="utf-8"))
        return recipe, float(kept.get("mean", 0.0)), float(kept.get("spread", 1.0))
    run, _ = checkpoint
    own = resolved.read(run.resolved)
    if not own.objective.has_scoring_head:
        raise BadInput(f"{what}, {run.name} is a run of {own.objective.method}; name a run of objective: reward")
    state = TrainState.read(CheckpointPaths(folder).state).learner
    return own, float(state.get("mean", 0.0)), float(state.get("spread", 1.0))
