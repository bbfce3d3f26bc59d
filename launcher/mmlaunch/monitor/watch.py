"""Follows a run: its events as they are written, until it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator

from mmlaunch.monitor import status
from mmlaunch.run import heartbeats
from mmlaunch.run.ledger import Event, Tail, kind_of
from mmlaunch.run.paths import RunPaths

POLL = 0.3
_SAY = 13
"""After so many looks without an event it is said what the ranks are busy with: about every four seconds."""
WAITING = ("pending", "held")


def events(run: RunPaths, lines: int = 0) -> Iterator[Event | None]:
    """Yield every event as it is written, and None while nothing is; stop when the run ends or its job is gone.

    While the run waits, the scheduler's reason is yielded as an event too; and while ranks are busy for long, what
    with, as an event "phase". The first `lines` lines of the ledger are left out, and what stands behind them of an
    earlier submission.
    """
    tail = Tail(run.events, lines)
    quiet, reason, since = 0, "", time.monotonic()
    while True:
        new = _newest_submission(tail.new()) if lines else tail.new()
        since = time.monotonic() if new else since
        if not new and quiet % 10 == 9:
            now = status.of(run)
            new = _newest_submission(tail.new()) if lines else tail.new()  # it may have ended in the meantime
            if (now.state == "lost" or now.final) and not new:  # only its scheduler knows of the end
                return
            if now.state in WAITING and now.reason != reason:
                reason = now.reason
                yield {"event": now.state, "reason": reason}
        yield from new
        if _over(new):
            return
        quiet = 0 if new else quiet + 1
        yield phase(run, since) if quiet and not quiet % _SAY else None
        time.sleep(POLL)


def phase(run: RunPaths, since: float) -> Event | None:
    """What the ranks of the newest attempt are busy with, by the heartbeat of the first one."""
    number = max(run.attempt_numbers, default=None)
    heartbeat = heartbeats.read(run.attempt(number).heartbeat(0)) if number is not None else None
    doing = heartbeat.doing if heartbeat else "the ranks start"
    return {"event": "phase", "doing": doing, "seconds": round(time.monotonic() - since)}


def _newest_submission(new: tuple[Event, ...]) -> tuple[Event, ...]:
    """The end of an earlier submission is not the end of a run that was submitted again."""
    starts = [index for index, event in enumerate(new) if kind_of(event) == "submitted"]
    return new[starts[-1] :] if starts else new


def _over(new: tuple[Event, ...]) -> bool:
    """Whether the run has ended, and was not submitted again since."""
    last = [kind_of(event) for event in new if kind_of(event) in ("submitted", "ended")][-1:]
    return last == ["ended"]
