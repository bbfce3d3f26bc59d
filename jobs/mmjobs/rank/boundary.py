"""The step boundary: what is due before the next step, agreed among all ranks."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mmjobs.rank.ranks import Ranks
from mmjobs.rank.signals import StopRequest, name_of
from mmlaunch.recipe.scalars import Every


class RequeueRequested(Exception):
    """The attempt ends here and asks for another one: it was told to stop, and everything is saved."""


class Interrupted(Exception):
    """Work that can be done again was left, because the attempt has to end. The text is the reason."""


@dataclass(frozen=True)
class Due:
    """What all ranks do before the next step."""

    stop: str | None
    """The signal, or `deadline`, that ends this attempt."""
    evaluate: bool
    save: bool
    writing: int
    """The furthest that any rank still has to go with the files of a checkpoint."""
    failed: bool = False
    """Whether the loss of any rank was not finite in the last step."""


class Interval:
    """Something that is done every so many steps, or every so many seconds."""

    def __init__(self, every: list[Every], done_at: int | None, before_first: bool = False) -> None:
        self._every, self._before_first = every, before_first
        self._done_at = done_at
        self._time = time.monotonic()

    def due(self, step: int, last: bool) -> bool:
        """Whether it is time; the last step always is. Never twice at the same step, and seldom before the first."""
        if step == self._done_at:
            return False
        if step == 0:
            return self._before_first
        return last or any(self._passed(every, step) for every in self._every)

    def done_at(self, step: int) -> bool:
        """Whether it was done at this step."""
        return step == self._done_at

    def done(self, step: int) -> None:
        self._done_at, self._time = step, time.monotonic()

    def _passed(self, every: Every, step: int) -> bool:
        if every.steps is not None:
            return step % every.steps == 0
        return time.monotonic() - self._time >= (every.seconds or 0)


class Boundary:
    """The clock of rank 0 decides for all ranks; a signal to any rank concerns all of them."""

    def __init__(self, ranks: Ranks, stop: StopRequest, saving: Interval, evaluating: Interval) -> None:
        self._ranks, self._stop = ranks, stop
        self.saving, self.evaluating = saving, evaluating
        self.step_seconds = 0.0

    def due(self, step: int, last: bool, writing: int, failed: bool = False) -> Due:
        """Called by all ranks at each step boundary, with how far each of them is with writing a checkpoint."""
        first = self._ranks.first
        signal, late, evaluate, save, furthest, any_failed = self._ranks.highest(
            self._stop.signal,
            self._stop.too_late_for(0.0 if last else self.step_seconds),
            first and self.evaluating.due(step, last),
            first and self.saving.due(step, last),
            writing,
            failed,
        )
        return Due(_reason(signal, late), bool(evaluate), bool(save), int(furthest), bool(any_failed))

    def check(self, writing: int) -> int:
        """Called by all ranks inside work that takes longer than a step; raises `Interrupted` when it has to end."""
        signal, late, furthest = self._ranks.highest(self._stop.signal, self._stop.too_late_for(0.0), writing)
        if reason := _reason(signal, late):
            raise Interrupted(reason)
        return int(furthest)


def _reason(signal: float, late: float) -> str | None:
    return name_of(int(signal)) if signal else "deadline" if late else None
