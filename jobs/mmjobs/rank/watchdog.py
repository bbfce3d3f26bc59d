"""The hang watchdog: a rank that makes no progress for too long shows all its stacks and ends the attempt with 92.

Every rank watches itself, from a thread that needs the interpreter now and then. A rank that cannot (it was stopped, or
a library keeps the interpreter's lock) is missed by the others: they wait for it in a collective, and end.

While step follows step, the time that is allowed comes from their own times; all else has an allowance of its own,
below. `MMLAUNCH_HANG_SECONDS`, where it is set, takes the place of the least allowance of a step and of all the others:
for tests and for the impatient, who have to leave enough for the imports and for one batch of the evaluation.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from types import TracebackType
from typing import NamedTuple

from mmjobs.rank import error_record
from mmjobs.rank.position import Position, node
from mmlaunch.errors import BadInput
from mmlaunch.run.exits import JobExit
from mmlaunch.run.heartbeats import Heartbeat
from mmlaunch.run.paths import RunPaths


class Phase(Enum):
    """What a rank is busy with."""

    START = "start-up"
    ROLLOUT = "rollout"
    STEP = "training"
    EVALUATE = "evaluation"
    SAVE = "saving"
    LEAVE = "leaving"


ALLOWED = {
    Phase.START: 1800.0,  # imports from a cold file system; nodes that come later; a large model read from a busy disk
    Phase.ROLLOUT: 1800.0,  # for a few tokens of all answers, a batch of scores, or one row
    Phase.STEP: 60.0,  # at least: one slow file, one page of swap or a busy neighbour is not a hang
    Phase.EVALUATE: 1800.0,  # for one batch, or for rank 0's samples, which are generated token by token
    Phase.SAVE: 1800.0,  # for one stage of a checkpoint: at 100 MB/s, 100 GB take 17 minutes
    Phase.LEAVE: 600.0,  # the others may still be writing curves
}
"""Seconds without progress. Progress is a new phase, a new piece of it, and every collective that began or ended."""
TIMES, RECENT = 10, 50
"""A step is allowed this many times the longest of so many recent steps."""
WAITING = 1.2
"""A rank that waits for another one waits a little longer: the other one knows better what is wrong, and ends first."""
HEARTBEAT = 5.0
STOOD, QUIET = 12.0, 30.0
"""A process that stood still for so long says nothing for a while when it wakes. The others may have ended because of
it: Slurm wakes what it is about to end, and then its last word from before is what tells who kept them."""
REPORT = 20.0
"""Seconds for stacks and record. Where the file system itself hangs, they are given up."""


LIBRARIES = "loads the libraries"


class StartUp:
    """Where the seconds go from the beginning of a rank's process to the end of its first step."""

    def __init__(self, first: str) -> None:
        self.seconds: dict[str, float] = {}
        self._now, self._since = first, time.monotonic()
        self._over = False

    def begins(self, what: str) -> None:
        """The next piece of work begins."""
        if not self._over:
            now = time.monotonic()
            self.seconds[self._now] = round(self.seconds.get(self._now, 0.0) + now - self._since, 3)
            self._now, self._since = what, now

    def end(self) -> None:
        """The first step is done; what follows is no start-up."""
        self.begins("")
        self._over = True


class Pulse(NamedTuple):
    """One sign of life. It is replaced as a whole, so that the watching thread never sees half of one."""

    phase: Phase
    allowed: float
    waiting: bool
    """For the other ranks."""
    time: float


class Watchdog:
    """Fed by the rank's own thread, at the cost of reading the clock; watches from `with` to the end of the block."""

    def __init__(self, paths: RunPaths, where: Position) -> None:
        self._paths, self._where = paths, where
        self._attempt, self._rank = error_record.place(paths)
        self._given = _given()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._settled = False
        self._detail, self._unit, self._count = LIBRARIES, "", 0
        self.startup = StartUp(LIBRARIES)
        self.pulse = Pulse(Phase.START, self._least(Phase.START), False, time.time())
        self._over = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._watch, self._tell)]

    def __enter__(self) -> Watchdog:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(1.0)  # not for ever: it may be caught in a file system

    def enter(self, phase: Phase) -> None:
        """A phase begins, or the next piece of it.

        The first step after anything else keeps the allowance of that: there workers start, and the other ranks wait
        for what only rank 0 does.
        """
        self._detail, self._unit, self._count = "", "", 0
        allowed = self.pulse.allowed
        if phase is not Phase.START:  # which says itself what it does
            self.startup.begins("first step" if phase is Phase.STEP else phase.value)
        if phase is not Phase.STEP:
            allowed, self._settled = self._least(phase), False
        elif self._settled:
            allowed = max(self._least(phase), TIMES * max(self._recent, default=0.0))
        self.pulse = Pulse(phase, allowed, False, time.time())

    def stepped(self, seconds: float) -> None:
        """A step has ended."""
        self.startup.end()
        if self._settled:
            self._recent.append(min(seconds, self.pulse.allowed))  # more only when the job was suspended meanwhile
        self._settled = True

    def doing(self, detail: str, unit: str = "") -> None:
        """Say what the phase is busy with; with a `unit`, every sign of life counts one of it."""
        self._detail, self._unit, self._count = detail, unit, 0
        self.startup.begins(detail)
        self.moved()
        if self._rank == 0:  # whoever follows the run reads it at once
            self._beat(self.pulse)

    def moved(self) -> None:
        """A sign of life inside a long piece of work."""
        self._count += 1
        self.pulse = self.pulse._replace(time=time.time())

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For as long as this rank waits for the others."""
        self.pulse = self.pulse._replace(waiting=True, time=time.time())
        try:
            yield
        finally:
            self.pulse = self.pulse._replace(waiting=False, time=time.time())

    def _least(self, phase: Phase) -> float:
        return self._given or ALLOWED[phase]

    def _watch(self) -> None:
        tick = min(1.0, self._least(Phase.STEP) / 10)
        seen, silent, now = self.pulse, 0.0, time.monotonic()
        while not self._over.wait(tick):
            before, now, pulse = now, time.monotonic(), self.pulse
            if pulse is not seen:
                seen, silent = pulse, 0.0
            else:  # a job that Slurm suspends and continues is not to blame for the time in between
                silent += min(now - before, 2 * tick)
            if silent > pulse.allowed * (WAITING if pulse.waiting else 1.0):
                self._end(pulse, silent)

    def _end(self, pulse: Pulse, silent: float) -> None:
        try:
            report = threading.Thread(target=self._report, args=(pulse, silent), daemon=True)
            report.start()
            report.join(REPORT)
            for worker in multiprocessing.active_children():  # they may hang too, and nobody else would end them
                worker.kill()
        finally:
            os._exit(JobExit.HANG)

    def _report(self, pulse: Pulse, silent: float) -> None:
        stacks = self._attempt.stack(self._rank)
        shown = f"stacks: {stacks.relative_to(self._paths.root)}"
        try:
            stacks.parent.mkdir(parents=True, exist_ok=True)
            with stacks.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            shown = f"the stacks could not be written: {error}"
            faulthandler.dump_traceback(all_threads=True)
        place = "" if self._where.step is None else f", step {self._where.step}"
        waits = ", waiting for the other ranks" if pulse.waiting else ""
        message = f"no progress for {silent:.0f} s in {pulse.phase.value}{place}{waits}; {shown}"
        error_record.leave(self._paths, self._where.step, "Hang", message, traceback=_main_stack())
        self._beat(pulse)
        error_record.say(f"Hang: {message}")
        with suppress(OSError):
            sys.stdout.flush()

    def _tell(self) -> None:
        """Leave the last sign of life where status tools find it. Its own thread: a file system may hang."""
        every = min(HEARTBEAT, self._least(Phase.STEP) / 3)
        quiet, now = 0.0, time.monotonic()
        while True:
            before, now = now, time.monotonic()
            if now - before > every + STOOD:
                quiet = now + QUIET
            if now >= quiet:
                self._beat(self.pulse)  # whether or not it is new: that it is told says that this process lives
            if self._over.wait(every):
                return

    def _shown_detail(self) -> str:
        return f"{self._detail}, {self._count:,} {self._unit}" if self._unit else self._detail

    def _beat(self, pulse: Pulse) -> None:
        now, moved = round(time.time(), 3), round(pulse.time, 3)
        heartbeat = Heartbeat(
            pulse.phase.value, self._where.step, pulse.waiting, moved, now, self._shown_detail(), node(), os.getpid(),
            self._rank,
        )  # fmt: skip
        with suppress(OSError):
            heartbeat.write(self._attempt)


def _given() -> float | None:
    text = os.environ.get("MMLAUNCH_HANG_SECONDS")
    if not text:
        return None
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise BadInput(f"MMLAUNCH_HANG_SECONDS: {text!r} is no number of seconds; write one above 0, or unset it")


def _main_stack() -> str:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)) if frame else ""
