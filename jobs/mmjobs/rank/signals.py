"""Signals and the deadline: why a run should save now and come back later."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from dataclasses import dataclass
from types import FrameType

from mmlaunch.run.exits import WARNINGS


@dataclass
class StopRequest:
    """The signals that this rank received. Nobody acts on them before a step boundary, where all ranks agree."""

    deadline: float | None = None
    lead: float = 60.0
    signal: int = 0
    """The number of the last signal that announced an end."""

    def too_late_for(self, seconds: float) -> bool:
        """Whether another `seconds` of work would leave less than the lead before the deadline."""
        return self.deadline is not None and time.time() + seconds > self.deadline - self.lead

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number


def name_of(number: int) -> str:
    """The name of a signal, such as `SIGUSR2`."""
    return signal.Signals(number).name


def ignore_signals() -> None:
    """From here on this process only ends: a late signal must not change its exit code."""
    for number in WARNINGS:
        signal.signal(number, signal.SIG_IGN)


def listen() -> StopRequest:
    """Take over the signals that announce an end. Called before the slow imports, so that an early one is not lost.

    SIGQUIT ends nothing: it writes the stacks of all threads into the rank's log, to show what it waits for.
    """
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    deadline = os.environ.get("MMLAUNCH_DEADLINE")
    stop = StopRequest(float(deadline) if deadline else None, float(os.environ.get("MMLAUNCH_LEAD") or 60))
    for number in WARNINGS:
        signal.signal(number, stop.handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WARNINGS)  # which `schedulers.rank` has held back until now
    return stop
