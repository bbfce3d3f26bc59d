"""The learning rate schedule: warm-up, then constant, linear or cosine decay."""

from __future__ import annotations

import math

from mmlaunch.recipe.optim import Optim


def lr_factor(optim: Optim, step: int, steps: int) -> float:
    """What the peak learning rate is multiplied with in step `step` (counted from 0) of `steps`."""
    warmup = optim.warmup.of(steps)
    if step < warmup:
        return (step + 1) / warmup
    if optim.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    left = 0.5 * (1 + math.cos(math.pi * done)) if optim.schedule == "cosine" else 1 - done
    return optim.final_lr + (1 - optim.final_lr) * left
