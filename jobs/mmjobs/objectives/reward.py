"""Reward modelling: a number for each answer, read where the answer ends."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from mmjobs.data.batch import Batch
from mmjobs.model.heads import score_of
from mmjobs.objectives.forward import hidden_states
from mmjobs.objectives.objective import ObjectiveOutput, Units
from mmjobs.objectives.policy_vs_reference import CompletionIndex, pick
from mmjobs.objectives.terms.others import ranked
from mmjobs.objectives.terms.pairs import smoothed
from mmlaunch.recipe.objective import Reward as Settings

_MEMORY = 0.99
"""What a step leaves of the weight of those before it in the statistics."""


class Reward:
    """The unit is the example: its answers in their order, or each answer's own score."""

    over: tuple[str, ...] = ("examples",)

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.metrics = settings.metrics
        self._seen = [0.0, 0.0, 0.0]  # answers, their rewards, their squares

    def units(self, batch: Batch) -> Units:
        return {"examples": float(len(batch))}

    def __call__(self, network: nn.Module, batch: Batch) -> ObjectiveOutput:
        rewards = score_of(network, hidden_states(network, batch, batch.answers.last))  # [A]
        index = CompletionIndex(batch)
        table, there = pick(rewards, index.table), index.exists  # [E, K]
        scores = pick(batch.answers.score, index.table).to(table.dtype)
        loss = self._loss(table, scores, there)  # [E]
        total = (table * there).sum(1)
        each = loss + self._settings.centre * total**2
        seen = rewards.detach()
        ahead, pairs = _pairs(table.detach(), there)
        return ObjectiveOutput(
            losses={"examples": each.sum()},
            example_losses=each.detach(),
            metrics={
                "reward": (seen.sum(), seen.new_tensor(len(seen))),
                "reward_squared": (seen.square().sum(), seen.new_tensor(len(seen))),
                "accuracy": ((ahead > 0).to(seen)[pairs].sum(), pairs.sum().to(seen)),
                "margin": (ahead[pairs].sum(), pairs.sum().to(seen)),
            },
        )

    def _loss(self, rewards: torch.Tensor, scores: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """[E, K] each -> [E]"""
        settings = self._settings
        if settings.loss == "regression":
            return (torch.where(there, rewards - scores, 0) ** 2).sum(1) / there.sum(1).clamp_min(1)
        if not settings.margin and settings.soft_labels is None:
            return ranked(rewards, there)
        ahead, pairs = _pairs(rewards, there)  # [E, K, K]
        gaps, _ = _pairs(scores, there)
        gaps = torch.where(pairs, gaps, 0)
        if settings.soft_labels is None:
            losses = -logsigmoid(ahead - gaps)
        else:
            losses = smoothed(ahead, 1 - torch.sigmoid(settings.soft_labels * gaps))
        return torch.where(pairs, losses, 0).sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1)

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """The spread of the rewards in the place of their mean square."""
        squared = means.pop("reward_squared", None)
        if squared is not None:
            means["reward_spread"] = max(0.0, squared - means["reward"] ** 2) ** 0.5
        return means

    def state(self) -> dict[str, Any]:
        """How the rewards of the last steps were spread: what standardises them for whoever uses this model."""
        count, total, squares = self._seen
        mean = total / count if count else 0.0
        spread = max(0.0, squares / count - mean * mean) ** 0.5 if count else 1.0
        return {"seen": self._seen, "mean": mean, "spread": spread}

    def restore(self, state: dict[str, Any]) -> None:
        self._seen = list(state.get("seen", self._seen))

    def update(self, sums: dict[str, tuple[float, float]]) -> None:
        (total, count), (squares, _) = sums["reward"], sums["reward_squared"]
        self._seen = [_MEMORY * old + new for old, new in zip(self._seen, (count, total, squares), strict=True)]


def _pairs(values: torch.Tensor, there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far each answer is ahead of each that is ranked behind it, and which of these pairs there are: [E, K, K]."""
    ordered = torch.ones(values.shape[1], values.shape[1], dtype=torch.bool, device=values.device).triu(1)
    return values[:, :, None] - values[:, None, :], there[:, :, None] & there[:, None, :] & ordered
