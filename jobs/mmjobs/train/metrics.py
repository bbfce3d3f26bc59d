"""Metrics: sums and counts of micro-batches, added up over accumulation and ranks, and only then divided."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmjobs.objectives.measured import Measured
from mmjobs.train.ranks import Ranks


class Totals:
    """The running sum and count of each metric."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.values = torch.zeros(len(self.names), 2, dtype=torch.float64)  # [K, 2]

    def add(self, measured: Measured) -> None:
        """Take in one micro-batch."""
        for row, name in enumerate(self.names):
            self.values[row] += torch.stack(measured.metrics[name]).double().cpu()

    def reduce(self, ranks: Ranks) -> None:
        """From this rank's sums and counts to those of all ranks."""
        ranks.add(self.values)

    def count(self, name: str) -> float:
        return float(self.values[self.names.index(name), 1])

    def means(self) -> dict[str, float]:
        return {
            name: float(total / count) for name, (total, count) in zip(self.names, self.values, strict=True) if count
        }
