"""Statistics: how certain a comparison over so many pairs is, as confidence intervals and tests."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch

RESAMPLES = 10_000
_Z = 1.959963984540054
"""The standard errors on both sides of the mean that hold 95 % of a normal distribution."""


def wilson(right: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): it stays between 0 and 1, and has a width at both ends."""
    share, z = right / count, _Z**2 / count
    centre, half = share + z / 2, _Z * math.sqrt(share * (1 - share) / count + z / count / 4)
    return max(0.0, (centre - half) / (1 + z)), min(1.0, (centre + half) / (1 + z))


def around_mean(values: torch.Tensor) -> tuple[float, float] | None:
    """The 95 % interval of a mean, by the normal approximation; one value alone has none."""
    if len(values) < 2:
        return None
    mean, half = float(values.mean()), _Z * float(values.std()) / math.sqrt(len(values))
    return mean - half, mean + half


def difference(ahead: torch.Tensor) -> dict[str, Any]:
    """The difference between paired outcomes, each from -1 (only A is right) to 1 (only B is).

    It is beyond chance where the bootstrap and the sign test agree: where few pairs differ, and all in the same way,
    every resample is alike, and the bootstrap alone would be certain of anything.
    """
    only_a, only_b = int((ahead < 0).sum()), int((ahead > 0).sum())
    low, high = bootstrap(ahead)
    chance = sign_test(only_a, only_b)
    summary = {
        "accuracy": float(ahead.mean()),
        "interval": (low, high),
        "only_a": only_a,
        "only_b": only_b,
        "p": chance,
    }
    return summary | {"beyond_chance": chance < 0.05 and (low > 0 or high < 0)}


def bootstrap(values: torch.Tensor) -> tuple[float, float]:
    """The 95 % interval of a mean: its quantiles over samples drawn from the values, with a fixed seed.

    How often each value is in such a sample is multinomial: a few draws instead of one for each pair.
    """
    dice = torch.Generator().manual_seed(0)
    total = torch.zeros(RESAMPLES, dtype=torch.float64)
    remaining, rest = torch.full_like(total, len(values)), len(values)
    for kind, count in sorted(Counter(values.tolist()).items()):
        drawn = torch.binomial(remaining, torch.full_like(total, count / rest), generator=dice)
        total, remaining, rest = total + kind * drawn, remaining - drawn, rest - count
    low, high = (total / len(values)).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def sign_test(one: int, other: int) -> float:
    """The probability that a fair coin divides these pairs at least as unevenly (McNemar's exact test)."""
    k, count = torch.arange(min(one, other) + 1, dtype=torch.float64), torch.tensor(one + other, dtype=torch.float64)
    ways = torch.lgamma(count + 1) - torch.lgamma(k + 1) - torch.lgamma(count - k + 1) - count * math.log(2)
    return min(1.0, 2 * float(ways.exp().sum()))
