"""The schedule of the learning rate."""

from __future__ import annotations

import math

from mmlaunch.recipe.optim import Optim


def share(optim: Optim, step: int, steps: int) -> float:
    """The share of the peak learning rate that step `step` (counted from 0) of `steps` uses."""
    warmup = optim.warmup.of(steps)
    if step < warmup:
        return (step + 1) / warmup
    if optim.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    left = 0.5 * (1 + math.cos(math.pi * done)) if optim.schedule == "cosine" else 1 - done
    return optim.final_lr + (1 - optim.final_lr) * left
