"""Contenders: two trainers that are compared, each in a process of its own, each at work only when it is its turn."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Trainer = Callable[[Connection, Path, Path, dict[str, Any]], None]
"""What works in the new process: with its end of the line, the data, a folder of its own, and its options."""


@dataclass
class Turns:
    """The trainer's end of the line: after each turn it says what it did, and waits for the next one."""

    line: Connection
    before: int
    more: dict[str, Any] = field(default_factory=dict)
    """What else it wants to say."""
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    left: int = 1
    since: float = field(default_factory=time.process_time)

    def step(self, loss: float, norm: float = 0.0) -> None:
        """A step is done; returns when the next one may begin."""
        self.losses.append(loss)
        self.norms.append(norm)
        self.left -= 1
        if self.left:
            return
        seconds, peak = time.process_time() - self.since, memory("VmHWM")
        told = {"seconds": seconds, "peak": peak, "added": peak - self.before, "losses": self.losses}
        self.line.send({**told, "norms": self.norms, **self.more})
        self.left = self.line.recv()
        if not self.left:
            os._exit(0)  # neither of them has anything to tidy up
        if len(self.losses) == 1:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins anew; building has its own
        self.losses, self.norms, self.since = [], [], time.process_time()


def memory(name: str) -> int:
    """Bytes: VmRSS is what this process has, VmHWM what it had at most (proc(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _begin(trainer: Trainer, line: Connection, data: Path, own: Path, options: dict[str, Any]) -> None:
    """In the new process: one thread, a rank of one, and what is printed goes to a file."""
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
        work = multiprocessing.get_context("spawn").Process(
            target=_begin, args=(trainer, other, data, own, options), daemon=True
        )
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
            raise SystemExit(self._log.read_text()[-3000:]) from None
