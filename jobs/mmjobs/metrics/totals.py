"""Metrics: sums and counts of micro-batches, added up over accumulation and ranks, and only then divided."""

from __future__ import annotations

import torch

from mmjobs.objectives.objective import Objective, ObjectiveOutput, Summarising, Units
from mmjobs.rank.ranks import Ranks


class Totals:
    """The running sum and count of each loss and of each metric."""

    def __init__(self, objective: Objective) -> None:
        self._over, self._names = objective.over, objective.metrics
        self.values = torch.zeros(len(self._over) + len(self._names), 2, dtype=torch.float64)  # [K, 2]

    def add(self, measured: ObjectiveOutput, units: Units) -> None:
        """Take in one micro-batch."""
        device = measured.each.device
        losses = [torch.stack([measured.losses[unit].detach().double(), torch.tensor(units[unit], device=device)])
                  for unit in self._over]  # fmt: skip
        metrics = [torch.stack([number.double() for number in measured.metrics[name]]) for name in self._names]
        self.values += torch.stack([*losses, *metrics]).cpu()  # once: each of these would wait for the device

    def reduce(self, ranks: Ranks) -> None:
        """From this rank's sums and counts to those of all ranks."""
        ranks.add(self.values)

    def sums(self) -> dict[str, tuple[float, float]]:
        """The sum and the count of each metric."""
        rows = self.values[len(self._over) :].tolist()
        return {name: (total, count) for name, (total, count) in zip(self._names, rows, strict=True)}

    def means(self) -> dict[str, float]:
        """`loss`, as it is minimised, and every metric that something counted for."""
        rows = self.values.tolist()
        losses, metrics = rows[: len(self._over)], rows[len(self._over) :]
        means = {"loss": sum(total / count for total, count in losses if count)}
        return means | {name: total / count for name, (total, count) in zip(self._names, metrics, strict=True) if count}


def summary(objective: Objective, means: dict[str, float]) -> dict[str, float]:
    """What is shown of these means."""
    return objective.summary(means) if isinstance(objective, Summarising) else means
