"""Metrics: sums and counts of micro-batches, added up over accumulation and ranks, and only then divided."""

from __future__ import annotations

import torch

from mmjobs.objectives.objective import Objective, ObjectiveOutput, Summarising, Units
from mmjobs.rank.ranks import Ranks


class Totals:
    """The running sum and count of each loss and of each metric, on the device until somebody reads them."""

    def __init__(self, objective: Objective) -> None:
        self._over, self._names = objective.over, objective.metrics
        self._units = dict.fromkeys(self._over, 0.0)
        self._losses: torch.Tensor | None = None  # [L]
        self._metrics: torch.Tensor | None = None  # [M, 2]
        self._reduced: list[list[float]] | None = None

    def add(self, output: ObjectiveOutput, units: Units) -> None:
        """Add one micro-batch."""
        losses = torch.stack([output.losses[unit].detach().double() for unit in self._over])
        self._losses = losses if self._losses is None else self._losses + losses
        if self._names:
            pairs = [torch.stack([number.double() for number in output.metrics[name]]) for name in self._names]
            metrics = torch.stack(pairs)
            self._metrics = metrics if self._metrics is None else self._metrics + metrics
        for unit in self._over:
            self._units[unit] += units[unit]

    def loss_is_finite(self) -> bool:
        """Whether the losses of this rank are finite numbers; waits for the device."""
        return self._losses is None or bool(self._losses.isfinite().all())

    def reduce(self, ranks: Ranks) -> None:
        """From this rank's sums and counts to those of all ranks, once; all ranks call it together."""
        if self._reduced is not None:
            return
        losses = torch.zeros(len(self._over)) if self._losses is None else self._losses.cpu()
        metrics = torch.zeros(len(self._names), 2) if self._metrics is None else self._metrics.cpu()
        units = torch.tensor([self._units[unit] for unit in self._over], dtype=torch.float64)
        values = torch.cat([torch.stack([losses.double(), units], dim=1), metrics.double()])  # [L + M, 2]
        ranks.add(values)
        self._reduced = values.tolist()

    def sums(self) -> dict[str, tuple[float, float]]:
        """The sum and the count of each metric over all ranks."""
        rows = self._rows()[len(self._over) :]
        return {name: (total, count) for name, (total, count) in zip(self._names, rows, strict=True)}

    def means(self) -> dict[str, float]:
        """`loss`, as it is minimised, and every metric that something counted for."""
        losses, metrics = self._rows()[: len(self._over)], self._rows()[len(self._over) :]
        means = {"loss": sum(total / count for total, count in losses if count)}
        return means | {name: total / count for name, (total, count) in zip(self._names, metrics, strict=True) if count}

    def _rows(self) -> list[list[float]]:
        if self._reduced is None:
            raise RuntimeError("totals are read before they are reduced over the ranks")
        return self._reduced


def summary(objective: Objective, means: dict[str, float]) -> dict[str, float]:
    """What is shown of these means."""
    return objective.summary(means) if isinstance(objective, Summarising) else means
