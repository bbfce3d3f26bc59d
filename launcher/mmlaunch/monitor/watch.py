"""Watching a run: its events as they come, until its last word."""

from __future__ import annotations

import time
from collections.abc import Iterator

from mmlaunch.monitor import status
from mmlaunch.run.ledger import Event, Tail, kind_of
from mmlaunch.run.paths import RunPaths

POLL = 0.3
WAITING = ("pending", "held")


def events(run: RunPaths, offset: int = 0) -> Iterator[Event | None]:
    """Every event as it comes; None in between; ends after the run's last word, or when its process is gone.

    What only the scheduler can tell of a run that waits comes as an event too. `offset`: where in the ledger to begin.
    """
    tail = Tail(run.events, offset)
    quiet, reason = 0, ""
    while True:
        new = tail.new()
        if not new and quiet % 10 == 9:
            now = status.of(run)
            new = tail.new()  # its last word may have come meanwhile
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
