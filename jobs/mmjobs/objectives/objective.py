"""The objective protocol: a loss as sums and unit counts, never means; only the learner divides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from mmjobs.data.batch import Batch

Units = dict[str, float]
"""How much there is of what losses are averaged over: `tokens`, `examples` ..."""
Statistics = dict[str, torch.Tensor]
"""What an objective needs to know of a micro-batch of the global batch, by name."""
Reference = Callable[[nn.Module, Batch], torch.Tensor]
"""The reference model's log-probability of each token in the loss of a batch: [U]."""


@dataclass(frozen=True)
class ObjectiveOutput:
    """What an objective computes of one micro-batch."""

    losses: dict[str, torch.Tensor]
    """unit -> the sum to be minimised; its gradient is divided by the units of the whole global batch."""
    example_losses: torch.Tensor  # [B], detached: they name the examples whose loss is not finite
    metrics: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """name -> (sum, count)"""

    @property
    def loss(self) -> torch.Tensor:
        """The plain sum, where there is one unit only."""
        (loss,) = self.losses.values()
        return loss


class Objective(Protocol):
    """What a run minimises."""

    over: tuple[str, ...]
    """The units that its losses are averaged over."""
    metrics: tuple[str, ...]
    """The names of what it measures beside the loss."""

    def units(self, batch: Batch) -> Units:
        """What a batch counts for, before anything is computed: losses are divided by the sums of these over a step."""

    def __call__(self, network: nn.Module, batch: Batch) -> ObjectiveOutput: ...


@runtime_checkable
class Stateful(Protocol):
    """An objective that remembers something from step to step; checkpoints keep it."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...

    def update(self, sums: dict[str, tuple[float, float]]) -> None:
        """Take the sums and counts of the metrics of a finished step, over the whole global batch."""


@runtime_checkable
class NeedsGlobalBatch(Protocol):
    """An objective whose loss of one example may depend on the other examples of the global batch."""

    needs_global_batch: bool

    def statistics(self, network: nn.Module, batch: Batch) -> Statistics:
        """What the other micro-batches need to know of this one."""

    def set_global_batch(self, statistics: Sequence[Sequence[Statistics]], rank: int) -> None:
        """Take the statistics of all micro-batches of all ranks; this rank's are computed next, in this order."""


@runtime_checkable
class Summarising(Protocol):
    """An objective that shows some of its means in another form."""

    def summary(self, means: dict[str, float]) -> dict[str, float]: ...
