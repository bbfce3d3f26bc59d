"""Contenders: two trainers that are compared, each in a process of its own, each at work only when it is its turn."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mmjobs.data.parent import end_with_parent

Trainer = Callable[[Connection, Path, Path, dict[str, Any]], None]
"""What works in the new process: with its end of the line, the data, a folder of its own, and its options."""


@dataclass
class Turns:
    """The trainer's end of the line: after each turn it says what it did, and waits for the next one."""

    line: Connection
    meter: Meter = field(default_factory=lambda: meter())
    more: dict[str, Any] = field(default_factory=dict)
    """What else it wants to say."""
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    left: int = 1

    def __post_init__(self) -> None:
        self.before = self.meter.held()
        self.since = self.meter.seconds()

    def step(self, loss: float, norm: float = 0.0) -> None:
        """A step is done; returns when the next one may begin."""
        self.losses.append(loss)
        self.norms.append(norm)
        self.left -= 1
        if self.left:
            return
        seconds, peak = self.meter.seconds() - self.since, self.meter.peak()
        told = {"seconds": seconds, "peak": peak, "added": peak - self.before, "losses": self.losses}
        self.line.send({**told, "norms": self.norms, **self.more})
        self.left = self.line.recv()
        if not self.left:
            os._exit(0)  # neither of them has anything to tidy up
        if len(self.losses) == 1:
            self.meter.anew()  # building has a peak of its own
        self.losses, self.norms, self.since = [], [], self.meter.seconds()


class Meter:
    """What a process takes of one core: its CPU time, its memory (proc(5))."""

    def seconds(self) -> float:
        return time.process_time()

    def held(self) -> int:
        """Bytes that it has now."""
        return _status("VmRSS")

    def peak(self) -> int:
        """Bytes that it had at most."""
        return _status("VmHWM")

    def anew(self) -> None:
        """The peak begins here."""
        Path("/proc/self/clear_refs").write_text("5")


class DeviceMeter(Meter):
    """What a process takes of a GPU: the time until all that it was asked for is done, and its tensors."""

    def seconds(self) -> float:
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()

    def held(self) -> int:
        return 0  # the weights count: on a GPU they are most of it

    def peak(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated()

    def anew(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats()


def meter() -> Meter:
    """Of the device that this process works on."""
    torch = sys.modules.get("torch")
    return DeviceMeter() if torch is not None and torch.cuda.is_available() else Meter()


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


class Died(RuntimeError):
    """A contender that could not go on; its last words."""


def _begin(trainer: Trainer, line: Connection, data: Path, own: Path, options: dict[str, Any]) -> None:
    """In the new process: one thread, a rank of one, and what is printed goes to a file."""
    end_with_parent()  # it is no daemon: a data loader may have workers of its own
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "MMLAUNCH_ATTEMPT": "1", "MMLAUNCH_HANG_SECONDS": "3600"}
    os.dup2(os.open(own / f"{trainer.__name__}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    import torch

    torch.set_num_threads(1)
    trainer(line, data, own, options)


class Contender:
    """One of the two, from outside."""

    def __init__(self, trainer: Trainer, data: Path, own: Path, options: dict[str, Any]) -> None:
        own.mkdir(exist_ok=True)
        self._log = own / f"{trainer.__name__}.log"
        self._line, other = multiprocessing.Pipe()
        work = multiprocessing.get_context("spawn").Process(target=_begin, args=(trainer, other, data, own, options))
        work.start()
        other.close()
        self._process = work
        self.first = self._said()

    def turn(self, steps: int) -> dict[str, Any]:
        """Let it do so many steps; what it says of them."""
        self._line.send(steps)
        return self._said()

    def end(self) -> None:
        self._line.send(0)
        self._process.join()

    def _said(self) -> dict[str, Any]:
        try:
            return dict(self._line.recv())
        except EOFError:
            raise Died(self._log.read_text()[-3000:]) from None
