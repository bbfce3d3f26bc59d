"""The difference between the engine that answers and the trainer that learns: it is measured, and corrected."""

from __future__ import annotations

import torch

from mmjobs.objectives.policy import OLD, WEIGHT
from mmjobs.rollout.rollout import Rollout
from mmlaunch.recipe.engine import Correction

_BOUND = 20.0
"""The largest logarithm of a weight."""


def truncated(log_weights: torch.Tensor, limit: float) -> torch.Tensor:
    """Truncated importance weights: min(exp(o - b), limit) of each token."""
    return log_weights.clamp(-_BOUND, _BOUND).exp().clamp(max=limit)


def correct(rollout: Rollout, correction: Correction | None) -> dict[str, float]:
    """Measure the difference of each token, and add the weight that corrects it where the recipe asks for one.

    None: the trainer itself has answered, and only rounding differs.
    """
    log_weights = torch.where(rollout.mask, rollout.numbers[OLD] - rollout.behaviour, 0)  # [A, T], o - b
    if correction is None:
        gap = log_weights[rollout.mask].abs()
        return {"generation_gap": float(gap.mean()), "generation_gap_max": float(gap.max())}
    if correction.kind == "token_truncate":
        rollout.numbers[WEIGHT] = truncated(log_weights, correction.limit)
    return measured(log_weights[rollout.mask], correction.limit)


def measured(log_weights: torch.Tensor, limit: float) -> dict[str, float]:
    """Of each generated token: the mean and the largest difference, KL(b || o), the share of weights that are more
    than `limit` away from 1, up or down."""
    gap, bounded = log_weights.abs(), log_weights.clamp(-_BOUND, _BOUND)
    return {
        "generation_gap": float(gap.mean()),
        "generation_gap_max": float(gap.max()),
        "generation_kl": float((torch.expm1(bounded) - bounded).mean()),  # k3, whose samples are never negative
        "generation_outside": float((gap > torch.tensor(limit).log()).double().mean()),
    }
