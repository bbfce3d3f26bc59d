"""What an objective returns: sums and counts, never means; only the trainer divides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from mmjobs.data.batch import Batch

Told = dict[str, torch.Tensor]
Units = dict[str, float]
"""How much there is of what losses are averaged over: `tokens`, `examples` ..."""


@dataclass(frozen=True)
class ObjectiveOutput:
    """One micro-batch, measured."""

    losses: dict[str, torch.Tensor]
    """unit -> the sum to be minimised; the trainer divides its gradient by the units of the whole global batch."""
    each: torch.Tensor  # [B], the loss of each example, detached: it names those that are not finite
    metrics: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """name -> (sum, count)"""

    @property
    def loss(self) -> torch.Tensor:
        """The plain sum, where there is one unit only."""
        (loss,) = self.losses.values()
        return loss


class Objective(Protocol):
    """What a run learns."""

    over: tuple[str, ...]
    """The units that its losses are averaged over."""
    metrics: tuple[str, ...]
    """What it measures beside the loss."""

    def units(self, batch: Batch) -> Units:
        """What a batch counts for, before anything is computed: losses are divided by the sums of these over a step."""

    def __call__(self, network: nn.Module, batch: Batch) -> ObjectiveOutput: ...


@runtime_checkable
class Stateful(Protocol):
    """An objective that remembers something from step to step; checkpoints keep it."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...

    def learn(self, sums: dict[str, tuple[float, float]]) -> None:
        """Take in the sums and counts of the metrics of a finished step, over the whole global batch."""


@runtime_checkable
class LooksAhead(Protocol):
    """An objective whose loss of one example may depend on the others of the global batch."""

    looks_ahead: bool

    def ahead(self, network: nn.Module, batch: Batch) -> Told:
        """What the others want to know of a batch before the first gradient is made."""

    def know(self, everyone: Sequence[Sequence[Told]], rank: int) -> None:
        """Take in what all batches of all ranks have said; this rank's are measured next, in this order."""


@runtime_checkable
class Summarising(Protocol):
    """An objective some of whose means stand for something else."""

    def summary(self, means: dict[str, float]) -> dict[str, float]: ...
