"""What an objective returns: sums and counts, never means; only the trainer divides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from mmjobs.data.batch import Batch


@dataclass(frozen=True)
class Measured:
    """One micro-batch, measured."""

    loss: torch.Tensor
    """The sum to be minimised; the trainer divides its gradient by the units of the whole global batch."""
    each: torch.Tensor  # [B], the loss of each example, detached: it names those that are not finite
    metrics: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """name -> (sum, count); `loss` is one of them, and its count is the units."""


class Objective(Protocol):
    """What a run learns."""

    metrics: tuple[str, ...]
    answers: int
    """How many answers an example needs at least."""
    read: int | None
    """How many of them are looked at, the best first; None: all."""

    def units(self, batch: Batch) -> float:
        """What a batch counts for, before anything is computed: the loss of a step is divided by the sum of these."""

    def __call__(self, network: nn.Module, batch: Batch) -> Measured: ...
