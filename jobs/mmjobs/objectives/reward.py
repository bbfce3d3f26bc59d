"""Reward modelling: a number for each answer, read from its last token."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from mmjobs.data.batch import Batch, sent
from mmjobs.model.heads import score_of
from mmjobs.objectives.forward import hidden_states
from mmjobs.objectives.objective import ObjectiveOutput, Units
from mmjobs.objectives.policy_vs_reference import CompletionIndex, pick
from mmjobs.objectives.terms.others import equals, ranked
from mmjobs.objectives.terms.pairs import smoothed
from mmlaunch.recipe.objective import Reward as Settings

_MEMORY = 0.99
"""The decay of the running statistics of rewards at each step."""


class Reward:
    """The unit is the example: its answers in their ranking, or each answer's own score."""

    over: tuple[str, ...] = ("examples",)

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.metrics = settings.metrics
        self._seen = [0.0, 0.0, 0.0]  # the number of answers, the sum of their rewards, the sum of their squares

    def units(self, batch: Batch) -> Units:
        return {"examples": float(len(batch))}

    def __call__(self, network: nn.Module, batch: Batch) -> ObjectiveOutput:
        rewards = score_of(network, hidden_states(network, batch, batch.answers.last))  # [A]
        index = CompletionIndex.of(batch)
        table, exists = pick(rewards, index.table), index.exists  # [E, K]
        scores = pick(batch.answers.score, index.table)  # as exact as the data have them: equal ones are ties
        loss = self._loss(table, scores, exists)  # [E]
        total = (table * exists).sum(1)
        each = loss + self._settings.centre * total**2
        detached = rewards.detach()
        answers = detached.new_full((), len(detached))
        difference, _ = _pairs(table.detach(), exists)
        difference = difference.flatten()[sent(_pair_places(batch.host or batch), difference.device)]
        return ObjectiveOutput(
            losses={"examples": each.sum()},
            example_losses=each.detach(),
            metrics={
                "reward": (detached.sum(), answers),
                "reward_squared": (detached.square().sum(), answers),
                "accuracy": ((difference > 0).to(detached).sum(), detached.new_full((), len(difference))),
                "margin": (difference.sum(), detached.new_full((), len(difference))),
            },
        )

    def _loss(self, rewards: torch.Tensor, scores: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
        """[E, K] each -> [E]"""
        settings = self._settings
        if settings.loss == "regression":
            return (torch.where(exists, rewards - scores.to(rewards.dtype), 0) ** 2).sum(1) / exists.sum(1).clamp_min(1)
        if not settings.margin and settings.soft_labels is None:
            return ranked(rewards, exists, scores)
        difference, pairs = _pairs(rewards, exists, scores if settings.margin else None)  # [E, K, K]
        gaps, _ = _pairs(scores.to(rewards.dtype), exists)
        gaps = torch.where(pairs, gaps, 0)
        if settings.soft_labels is None:
            losses = -logsigmoid(difference - gaps)
        else:
            losses = smoothed(difference, 1 - torch.sigmoid(settings.soft_labels * gaps))
        return torch.where(pairs, losses, 0).sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1)

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """The standard deviation of the rewards in the place of their mean square."""
        squared = means.pop("reward_squared", None)
        if squared is not None:
            means["reward_spread"] = max(0.0, squared - means["reward"] ** 2) ** 0.5
        return means

    def state(self) -> dict[str, Any]:
        """The mean and standard deviation of the rewards of the last steps, which standardise them for PPO."""
        count, total, squares = self._seen
        mean = total / count if count else 0.0
        spread = max(0.0, squares / count - mean * mean) ** 0.5 if count else 1.0
        return {"seen": self._seen, "mean": mean, "spread": spread}

    def restore(self, state: dict[str, Any]) -> None:
        self._seen = list(state.get("seen", self._seen))

    def update(self, sums: dict[str, tuple[float, float]]) -> None:
        (total, count), (squares, _) = sums["reward"], sums["reward_squared"]
        self._seen = [_MEMORY * old + new for old, new in zip(self._seen, (count, total, squares), strict=True)]


def _pair_places(batch: Batch) -> torch.Tensor:
    """Where in [E, K, K] two answers are a pair, counted by the CPU."""
    index = CompletionIndex.of(batch)
    _, pairs = _pairs(index.table, index.exists, pick(batch.answers.score, index.table))
    return pairs.flatten().nonzero()[:, 0]


def _pairs(
    values: torch.Tensor, exists: torch.Tensor, scores: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The difference of each answer to each one ranked below it, and which of these pairs exist: [E, K, K].

    With the `scores` of the data, two answers of the same score are no pair.
    """
    ordered = torch.ones(values.shape[1], values.shape[1], dtype=torch.bool, device=values.device).triu(1)
    pairs = exists[:, :, None] & exists[:, None, :] & ordered
    return values[:, :, None] - values[:, None, :], pairs if scores is None else pairs & ~equals(scores, exists)
