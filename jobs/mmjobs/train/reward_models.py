"""Reward models: the frozen network of a reward run or of its export, and how its scores are standardised."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mmjobs.checkpoint import keep_frozen
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
from mmjobs.train import pins
from mmjobs.train.setup import build_network
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.recipe.check import recipe_of
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


@dataclass(frozen=True)
class Trained:
    """What the run or the export of a reward model says of it."""

    recipe: Recipe
    mean: float
    spread: float
    """Of its rewards in its own training."""

    def build(self, context: Context, folder: str | None) -> BuiltModel:
        """The model with the weights of a folder, or with any where others replace them."""
        model = self.recipe.model
        nothing = {"vision": "frozen", "projector": "frozen", "language": "frozen", "embeddings": False}
        train = model.train.model_copy(update={**nothing, "vision_layers": None})
        model = model.model_copy(update={"init_from": folder, "lora": None, "train": train})
        return build_network(context.recipe.model_copy(update={"model": model}), context.deepspeed, scoring_head=True)

    def scale(self, source: RewardSource) -> tuple[float, float]:
        """The mean and the spread that scores are standardised by."""
        return (self.mean, self.spread or 1.0) if source.standardise else (0.0, 1.0)


def build_reward_network(context: Context, source: RewardSource) -> RewardNetwork:
    """The network that a source of rewards names."""
    folder = Path(str(source.path))
    trained = _trained(context.recipe, folder)
    return RewardNetwork(trained.build(context, str(folder)), *trained.scale(source))


def build_kept_reward_network(context: Context, source: RewardSource) -> RewardNetwork:
    """The same for a run that has checkpoints: it keeps the weights, for attempts that no longer find the source."""
    kept = KeptReward(context, source)
    if kept.lost is None:
        built = kept.trained.build(context, str(source.path))
        kept.keep(built.network)
    else:
        built = kept.trained.build(context, None)
        kept.load(built.network)
    return RewardNetwork(built, *kept.trained.scale(source))


class KeptReward:
    """A reward model of which a run keeps what it reads, so that it can go on without the source."""

    def __init__(self, context: Context, source: RewardSource) -> None:
        self._context, self._path = context, str(source.path)
        self._field = pins.reward_field(context.recipe, source)
        self._known = pins.facts(context, self._field)
        self.lost = pins.lost_reward(context, self._field)
        """Why its source cannot be read any more; None where it can."""
        self.trained = self._as_kept() if self.lost else _trained(context.recipe, Path(self._path))

    def _as_kept(self) -> Trained:
        own = self._known["recipe"]
        recipe = recipe_of(own) if own is not None else self._context.recipe
        return Trained(recipe, float(self._known["mean"]), float(self._known["spread"]))

    def keep(self, network: nn.Module) -> None:
        """Keep these weights, unless the run has them already or they stay where they are. All ranks together."""
        if not self._known or pins.KEPT in self._known or not keep_frozen.copies(self._context, self._path):
            return
        name = keep_frozen.keep_network(self._context, network, f"the reward model {self._path}", self._path)
        of_run = self.trained.recipe is not self._context.recipe
        own = self.trained.recipe.model_dump(mode="json", by_alias=True, exclude_none=True) if of_run else None
        facts = {"recipe": own, "mean": self.trained.mean, "spread": self.trained.spread}
        pins.add(self._context, self._field, **{pins.KEPT: name}, **facts)

    def load(self, network: nn.Module) -> None:
        """Give a network the weights that are kept. All ranks together."""
        if not keep_frozen.load(self._context, network, self._known[pins.KEPT]):
            raise BadInput(f"{self.lost}, and the run has lost its copy; put it back as it was")
        self._context.events.warn(f"{self.lost}: the run goes on with the reward model that it has kept", step=0)


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


class Head(nn.Module):
    """A scoring head alone: all that is kept of a reward model whose backbone the critic has."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)


def shared_reward_model(context: Context, source: RewardSource, critic: Engine, head: torch.Tensor) -> RewardModel:
    """The reward model that a critic has started from, without weights of its own but the head."""
    kept, own = KeptReward(context, source), Head(head)
    if kept.lost is None:
        kept.keep(own)
    else:
        kept.load(own)
    return RewardModel(CriticWithoutAdapter(critic, own.weight.detach()), *kept.trained.scale(source))


def _trained(recipe: Recipe, folder: Path) -> Trained:
    """A reward model, of a run or of an export for `recipe`; raises `BadInput` where it is none."""
    what = f"objective.rewards: {folder} is no reward model: it has no scoring head"
    checkpoint = of_checkpoint(folder)
    if checkpoint is None:
        if not (folder / STATISTICS).is_file():
            raise BadInput(f"{what}; name a run of objective: reward, or its export")
        kept = json.loads((folder / STATISTICS).read_text(encoding="utf-8"))
        return Trained(recipe, float(kept.get("mean", 0.0)), float(kept.get("spread", 1.0)))
    run, _ = checkpoint
    own = resolved.read(run.resolved)
    if not own.objective.has_scoring_head:
        raise BadInput(f"{what}, {run.name} is a run of {own.objective.method}; name a run of objective: reward")
    state = TrainState.read(CheckpointPaths(folder).state).learner
    return Trained(own, float(state.get("mean", 0.0)), float(state.get("spread", 1.0)))
