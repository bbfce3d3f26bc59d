"""Throughput: examples and tokens a second, the time that is left, the memory in use, and MFU where it is known."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmjobs.data.batch import Batch
from mmjobs.metrics.mfu import ModelFlops
from mmjobs.rank.ranks import Ranks


@dataclass(frozen=True)
class Rates:
    """The averages between two log lines."""

    examples: float
    """Examples a second, over all ranks."""
    tokens: float
    """Tokens in the loss a second, over all ranks."""
    step_seconds: float
    fill: float = 1.0
    """The share of all rows that is neither padding nor empty."""
    mfu: float | None = None
    """The share of this rank's device that useful arithmetic takes, where its peak is known."""

    def __str__(self) -> str:
        share = "" if self.mfu is None else f"  MFU {self.mfu:.0%}"
        return f"{self.examples:.1f} examples/s  {self.tokens:.0f} tokens/s{share}  {memory() / 1e9:.1f} GB"

    def as_fields(self) -> dict[str, float | int]:
        """The fields of a `step` event."""
        fields: dict[str, float | int] = {"rate": round(self.examples, 3), "tokens_per_second": round(self.tokens, 3)}
        fields |= {"fill": round(self.fill, 4), "memory": memory()}
        return fields if self.mfu is None else {**fields, "mfu": round(self.mfu, 4)}

    def left(self, steps: int) -> str:
        """The time for the steps that are left, like `1m02s`."""
        seconds = round(steps * self.step_seconds)
        if seconds < 60:
            return f"{seconds}s"
        if seconds < 3600:
            return f"{seconds // 60}m{seconds % 60:02d}s"
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


class Throughput:
    """A stopwatch for steps. Evaluations and saves do not count."""

    def __init__(self, ranks: Ranks, examples: int, tokens_per_gpu: int | None, flops: ModelFlops | None) -> None:
        """`examples`: those of a global batch."""
        self._ranks, self._examples, self._row, self._flops = ranks, examples, tokens_per_gpu or 0, flops
        self._since = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self._steps, self._seconds, self._flop = 0, 0.0, 0.0
        self._loss_tokens, self._filled, self._capacity = 0, 0, 0  # of this rank

    def step(self, batches: Sequence[Batch]) -> float:
        """A step over these micro-batches of this rank has ended; returns its seconds."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        self._steps, self._seconds = self._steps + 1, self._seconds + seconds
        for batch in batches:
            self._loss_tokens += int(batch.loss_mask.sum())
            self._filled += batch.tokens if len(batch) else 0  # an empty row has one token, for nothing
            self._capacity += max(self._row, batch.ids.numel())
            if self._flops is not None:
                self._flop += self._flops.flop(batch)
        return seconds

    def pause(self) -> None:
        """The time since the last step belongs to something else."""
        self._since = time.monotonic()

    def rates(self) -> Rates:
        """The averages of the steps since the last call; all ranks call it together."""
        tokens, filled, capacity = self._ranks.sums(self._loss_tokens, self._filled, self._capacity)
        seconds, steps = max(self._seconds, 1e-9), max(1, self._steps)
        rates = Rates(
            examples=self._steps * self._examples / seconds,
            tokens=tokens / seconds,
            step_seconds=seconds / steps,
            fill=filled / capacity if capacity else 0.0,
            mfu=self._flop / seconds / self._flops.peak if self._flops is not None else None,
        )
        self._reset()
        return rates


def memory() -> int:
    """Bytes of the device that were in use at most; without one, the resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
