"""Follows a run: its events as they are written, until it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator

from mmlaunch.monitor import status
from mmlaunch.run.ledger import Event, Tail, kind_of
from mmlaunch.run.paths import RunPaths

POLL = 0.3
WAITING = ("pending", "held")


def events(run: RunPaths, offset: int = 0) -> Iterator[Event | None]:
    """Yield every event as it is written, and None while nothing is; stop when the run ends or its job is gone.

    While the run waits, the scheduler's reason is yielded as an event too. `offset`: where in the ledger to begin.
    """
    tail = Tail(run.events, offset)
    quiet, reason = 0, ""
    while True:
        new = tail.new()
        if not new and quiet % 10 == 9:
            now = status.of(run)
            new = tail.new()  # it may have ended in the meantime
            if now.state == "lost" and not new:
                return
            if now.state in WAITING and now.reason != reason:
                reason = now.reason
                yield {"event": now.state, "reason": reason}
        yield from new
        if _over(new):
            return
        quiet = 0 if new else quiet + 1
        yield None
        time.sleep(POLL)


def _over(new: tuple[Event, ...]) -> bool:
    """Whether the run has ended, and was not submitted again since."""
    last = [kind_of(event) for event in new if kind_of(event) in ("submitted", "ended")][-1:]
    return last == ["ended"]
