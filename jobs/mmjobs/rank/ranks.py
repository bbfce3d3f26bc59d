"""The ranks of a job: the number of this one, and the collectives that all of them call together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.deterministic

from mmjobs.rank.watchdog import Phase, Watchdog

NEVER = timedelta(days=1)
"""gloo's own patience: longer than that of the watchdog, which ends a hang with its own exit code and the stacks."""


class PeerLost(RuntimeError):
    """Another rank went away. The cause stands in its own error record."""


@dataclass(frozen=True)
class Ranks:
    """This rank among all; every method but the properties is called by all ranks together."""

    rank: int
    world: int
    watch: Watchdog

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes for all."""
        return self.rank == 0

    def add(self, values: torch.Tensor) -> None:
        """Replace `values` by their sum over all ranks."""
        with _together(self.watch):
            dist.all_reduce(values)

    def sums(self, *values_of_rank: float) -> list[float]:
        """The sum of each number over all ranks."""
        total = torch.tensor(values_of_rank, dtype=torch.float64)
        self.add(total)
        return [float(value) for value in total]

    def highest(self, *values: float) -> list[float]:
        """The largest of each value over all ranks."""
        largest = torch.tensor(values, dtype=torch.float64)
        with _together(self.watch):
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return [float(value) for value in largest]

    def any(self, value: bool) -> bool:
        """Whether this is true on any rank."""
        return bool(self.highest(float(value))[0])

    def from_first(self, value: Any = None) -> Any:
        """The value of rank 0."""
        box = [value]
        with _together(self.watch):
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order."""
        values: list[Any] = [None] * self.world
        with _together(self.watch):
            dist.all_gather_object(values, value)
        return values

    def leave(self) -> None:
        """The orderly end of all ranks; after an error a rank ends without it."""
        self.watch.enter(Phase.LEAVE)
        with _together(self.watch):
            dist.barrier()
            dist.destroy_process_group()


def join(watch: Watchdog) -> Ranks:
    """Join the others as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say; from here on, sums are deterministic."""
    _make_sums_deterministic()
    backend = "gloo"
    if torch.cuda.is_available():  # ranks exchange values in CPU memory, DeepSpeed reduces on the device
        backend = "cpu:gloo,cuda:nccl"
    with _together(watch):
        dist.init_process_group(backend, timeout=NEVER)
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), watch)


def _make_sums_deterministic() -> None:
    """Threads, or the blocks of a kernel, that add to the same number do so in another order each time: without this, a
    resumed run would have other last bits than one that was never interrupted."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS wants for it, before it starts
    # What is about to be written need not be filled first.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of a module
    torch.use_deterministic_algorithms(True, warn_only=True)
    warnings.filterwarnings("ignore", ".*does not have a deterministic implementation.*")


@contextmanager
def _together(watch: Watchdog) -> Iterator[None]:
    try:
        with watch.waiting():
            yield
    except RuntimeError as error:
        raise PeerLost(f"another rank went away, or was never there: {error}") from error


@contextmanager
def peers() -> Iterator[None]:
    """An error of gloo or NCCL inside a call of DeepSpeed means that another rank is gone: it is `PeerLost` too."""
    try:
        yield
    except RuntimeError as error:
        if "gloo/transport" in str(error) or "NCCL" in str(error):
            raise PeerLost(f"another rank went away: {error}") from error
        raise
