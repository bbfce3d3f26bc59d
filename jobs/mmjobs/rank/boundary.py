"""The agenda: what is due at a step boundary, agreed among all ranks."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mmjobs.rank.ranks import Ranks
from mmjobs.rank.signals import StopRequest, name_of
from mmlaunch.recipe.scalars import Every


class RequeueRequested(Exception):
    """The attempt ends here: it was told to, and everything is saved."""


class Interrupted(Exception):
    """Work that can be done again, left because the attempt has to end. Its text is the reason."""


@dataclass(frozen=True)
class Due:
    """What all ranks do before the next step."""

    stop: str | None
    """The signal, or `deadline`, that ends this attempt."""
    evaluate: bool
    save: bool
    writing: int
    """The highest of what the ranks said of their files."""


class Interval:
    """One thing that is done now and then: every so many steps, or every so many seconds."""

    def __init__(self, every: list[Every], done_at: int | None) -> None:
        self._every = every
        self._done_at = done_at
        self._time = time.monotonic()

    def due(self, step: int, last: bool) -> bool:
        """Whether it is time; the last step always is. Never twice at the same step, nor before the first."""
        if step in (0, self._done_at):
            return False
        return last or any(self._over(every, step) for every in self._every)

    def done_at(self, step: int) -> bool:
        """Whether it was done at this very step."""
        return step == self._done_at

    def done(self, step: int) -> None:
        self._done_at, self._time = step, time.monotonic()

    def _over(self, every: Every, step: int) -> bool:
        if every.steps is not None:
            return step % every.steps == 0
        return time.monotonic() - self._time >= (every.seconds or 0)


class Boundary:
    """Rank 0's clock decides for all; a signal to any rank concerns all."""

    def __init__(self, ranks: Ranks, stop: StopRequest, saving: Interval, evaluating: Interval) -> None:
        self._ranks, self._stop = ranks, stop
        self.saving, self.evaluating = saving, evaluating
        self.step_seconds = 0.0

    def due(self, step: int, last: bool, writing: int) -> Due:
        """Called by all ranks at each step boundary, with how far the writing of a checkpoint is on this one."""
        first = self._ranks.first
        signal, late, evaluate, save, writing_of_all = self._ranks.highest(
            self._stop.signal,
            self._stop.too_late_for(0.0 if last else self.step_seconds),
            first and self.evaluating.due(step, last),
            first and self.saving.due(step, last),
            writing,
        )
        return Due(_reason(signal, late), bool(evaluate), bool(save), int(writing_of_all))

    def check(self, writing: int) -> int:
        """Called by all ranks inside longer work than a step; raises `Interrupted` when the attempt has to end."""
        signal, late, writing_of_all = self._ranks.highest(self._stop.signal, self._stop.too_late_for(0.0), writing)
        if reason := _reason(signal, late):
            raise Interrupted(reason)
        return int(writing_of_all)


def _reason(signal: float, late: float) -> str | None:
    return name_of(int(signal)) if signal else "deadline" if late else None
