"""Shaping: from the raw score of an answer to the reward that it is trained with, and the KL penalty's coefficient.

The order is fixed: soft penalty of overlong answers, what an answer without an end gets, running normalisation, clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from mmlaunch.recipe.reinforcement import Kl, Overlong, Shaping

_EQUAL = 1e-8
"""The spread of equal scores, as a part of them: their mean is rounded."""


@dataclass
class RunningStatistics:
    """Count, mean and sum of squared deviations of all scores so far, merged batch by batch (Chan et al. 1983)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, scores: torch.Tensor) -> None:
        """Take the scores of a rollout, of all ranks; missing ones (NaN) are left out."""
        values = scores[~scores.isnan()].double()
        if not len(values):
            return
        count, mean = len(values), float(values.mean())
        squares = float((values - mean).square().sum())
        total, difference = self.count + count, mean - self.mean
        self.squares += squares + difference**2 * self.count * count / total
        self.mean += difference * count / total
        self.count = total

    @property
    def std(self) -> float:
        """The sample's; 1 where there are fewer than two scores, or all are equal but for rounding."""
        spread = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        return spread if spread > _EQUAL * max(1.0, abs(self.mean)) else 1.0


def overlong_penalty(lengths: torch.Tensor, longest: int, overlong: Overlong) -> torch.Tensor:
    """DAPO's soft penalty (arXiv 2503.14476, eq. 13): 0 up to `longest` - margin, then down to -weight: [A] -> [A]"""
    begin = longest - overlong.margin
    return overlong.weight * ((begin - lengths) / overlong.margin).clamp(-1, 0)


def penalised(
    scores: torch.Tensor,  # [A], NaN where missing
    lengths: torch.Tensor,  # [A]
    ended: torch.Tensor,  # [A]
    longest: int,
    settings: Shaping,
) -> torch.Tensor:
    """Scores after what long answers lose, and answers without an end: [A]"""
    rewards = scores.clone()
    if settings.overlong is not None:
        rewards = rewards + overlong_penalty(lengths, longest, settings.overlong)
    if settings.no_end == "replace":
        rewards = torch.where(ended | rewards.isnan(), rewards, settings.no_end_reward)
    elif settings.no_end == "subtract":
        rewards = torch.where(ended, rewards, rewards - settings.no_end_reward)
    return rewards


def scaled(scores: torch.Tensor, settings: Shaping, statistics: RunningStatistics) -> tuple[torch.Tensor, int]:
    """Penalised scores after normalisation and clip [A], and how many were clipped."""
    rewards = (scores - statistics.mean) / statistics.std if settings.normalise else scores
    if settings.clip is None:
        return rewards, 0
    return rewards.clamp(-settings.clip, settings.clip), int((rewards.abs() > settings.clip).sum())


def shaped(
    scores: torch.Tensor,
    lengths: torch.Tensor,
    ended: torch.Tensor,
    longest: int,
    settings: Shaping,
    statistics: RunningStatistics,
) -> tuple[torch.Tensor, int]:
    """The rewards [A], and how many were clipped. The running statistics take these scores first."""
    rewards = penalised(scores, lengths, ended, longest, settings)
    if settings.normalise:
        statistics.add(rewards)
    return scaled(rewards, settings, statistics)


class KlCoefficient:
    """The weight of the KL penalty: fixed, or led towards a KL of each answer (arXiv 1909.08593, section 2.2)."""

    def __init__(self, settings: Kl) -> None:
        self._settings = settings
        self.value = settings.weight

    def update(self, kl_per_sequence: float, answers: int) -> None:
        """After a rollout: the mean over its answers of the sum over their tokens."""
        target = self._settings.target_per_sequence
        if target is not None:
            error = min(max(kl_per_sequence / target - 1, -0.2), 0.2)
            self.value *= 1 + error * answers / self._settings.horizon

    def state(self) -> dict[str, Any]:
        return {"value": self.value}

    def restore(self, state: dict[str, Any]) -> None:
        self.value = float(state.get("value", self.value))
