"""The pace of a run: how fast it is, how long it still takes, how much memory it uses."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmjobs.data.batch import Batch
from mmjobs.metrics.mfu import ModelFlops


@dataclass(frozen=True)
class Rates:
    """The time between two log lines."""

    rate: float
    """Examples a second, over all ranks."""
    tokens: float
    """Learnt tokens a second, over all ranks."""
    step_seconds: float
    fill: float = 1.0
    """The share of all rows that is not padding, nor empty."""
    mfu: float | None = None
    """The share of this rank's device that useful arithmetic takes, where its peak is known."""

    def __str__(self) -> str:
        share = "" if self.mfu is None else f"  MFU {self.mfu:.0%}"
        return f"{self.rate:.1f} examples/s  {self.tokens:.0f} tokens/s{share}  {memory() / 1e9:.1f} GB"

    def numbers(self) -> dict[str, float | int]:
        numbers: dict[str, float | int] = {"rate": round(self.rate, 3), "tokens_per_second": round(self.tokens, 3)}
        numbers |= {"fill": round(self.fill, 4), "memory": memory()}
        return numbers if self.mfu is None else {**numbers, "mfu": round(self.mfu, 4)}

    def left(self, steps: int) -> str:
        """`1m02s` for the steps that are left."""
        seconds = round(steps * self.step_seconds)
        if seconds < 60:
            return f"{seconds}s"
        return (
            f"{seconds // 60}m{seconds % 60:02d}s"
            if seconds < 3600
            else f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
        )


class Throughput:
    """A stopwatch for steps; evaluations and saves do not count."""

    def __init__(self, examples: int, work: ModelFlops | None = None) -> None:
        self._examples, self._work = examples, work
        self._begun = time.monotonic()
        self._begin()

    def _begin(self) -> None:
        self._steps, self._seconds, self._tokens, self._flop, self._fill = 0, 0.0, 0.0, 0.0, 0.0

    def step(self, tokens: float, batches: Sequence[Batch] = (), fill: float = 1.0) -> float:
        """A step over these batches of this rank has ended; its duration."""
        now = time.monotonic()
        seconds, self._begun = now - self._begun, now
        self._steps, self._seconds, self._tokens = self._steps + 1, self._seconds + seconds, self._tokens + tokens
        self._fill += fill
        if self._work is not None:
            self._flop += sum(self._work.flop(batch) for batch in batches)
        return seconds

    def pause(self) -> None:
        """What has passed since the last step belongs to something else."""
        self._begun = time.monotonic()

    def lap(self) -> Rates:
        """The steps since the last call."""
        seconds = max(self._seconds, 1e-9)
        mfu = self._flop / seconds / self._work.peak if self._work is not None else None
        steps = max(1, self._steps)
        rates = self._steps * self._examples / seconds, self._tokens / seconds
        lap = Rates(*rates, step_seconds=seconds / steps, fill=self._fill / steps, mfu=mfu)
        self._begin()
        return lap


def memory() -> int:
    """Bytes of the device that were in use at most; without one, those of this process that are in memory now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
