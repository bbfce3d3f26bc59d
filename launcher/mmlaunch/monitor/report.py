"""What a run cost: its attempts, what each lost, how long it waited, and how much of its time was training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmlaunch.monitor import status
from mmlaunch.monitor.state import FINAL
from mmlaunch.run import heartbeats, ledger
from mmlaunch.run.ledger import Event, kind_of
from mmlaunch.run.paths import RunPaths


@dataclass(frozen=True)
class Attempt:
    """One attempt, from its start to its end."""

    number: int
    nodes: str
    waited: float  # seconds in the queue before it
    lasted: float
    ranks: int
    cause: str  # of its end
    first_step: int | None
    last_step: int | None
    lost_steps: int  # steps that the next attempt had to do again
    productive: float  # seconds between the built model and the last step that counted
    startup: Mapping[str, float]  # seconds of each piece of work before the first step was done


@dataclass(frozen=True)
class End:
    """How and when an attempt ended."""

    cause: str
    time: float
    event: Event | None = None
    """What was written of it, if anything was."""


@dataclass(frozen=True)
class Report:
    """A run, summed up."""

    run: str
    attempts: tuple[Attempt, ...]
    ranks: int

    @property
    def allocated(self) -> float:
        return sum(attempt.lasted for attempt in self.attempts)

    @property
    def queued(self) -> float:
        return sum(attempt.waited for attempt in self.attempts)

    @property
    def goodput(self) -> float:
        """Productive time as a share of allocated time."""
        return sum(attempt.productive for attempt in self.attempts) / self.allocated if self.allocated else 0.0

    @property
    def rank_hours(self) -> float:
        return sum(attempt.lasted * attempt.ranks for attempt in self.attempts) / 3600

    @property
    def lost_steps(self) -> int:
        return sum(attempt.lost_steps for attempt in self.attempts)

    def as_json(self) -> dict[str, Any]:
        totals = ("allocated", "queued", "goodput", "rank_hours", "lost_steps")
        return {**asdict(self), **{name: round(getattr(self, name), 4) for name in totals}}


def of(run: RunPaths, now: float) -> Report:
    """The report of a run. An attempt that still runs is counted up to `now`."""
    events = ledger.read(run.events).events
    starts = [index for index, event in enumerate(events) if kind_of(event) == "started"]
    parts = [_part(events, start) for start in starts]
    ends = [_end(run, part) for part in parts]
    if ends and ends[-1].event is None:  # only its scheduler knows whether it goes on
        state = status.of(run, whole=True).state
        gone = state in (*FINAL, "lost", "unknown")
        ends[-1] = End(state, ends[-1].time) if gone else End("goes on", max(now, parts[-1][0]["time"]))
    attempts = []
    for index, part in enumerate(parts):
        following = parts[index + 1] if index + 1 < len(parts) else None
        before = events[: starts[index]]
        waited = part[0]["time"] - _queued_at(before, ends[index - 1] if index else None)
        attempts.append(_attempt(part, following, ends[index], waited, _ranks(before)))
    return Report(run.name, tuple(attempts), _ranks(events))


def _part(events: Sequence[Event], start: int) -> Sequence[Event]:
    """The events of the attempt that starts there: up to the next one, or to the next submission."""
    rest = enumerate(events[start + 1 :], start + 1)
    return events[start : next((i for i, event in rest if kind_of(event) in ("started", "submitted")), len(events))]


def _end(run: RunPaths, part: Sequence[Event]) -> End:
    """How and when an attempt ended.

    The attempt writes its own end. If somebody else has written it later, or nobody has, the attempt ended with its
    last sign of life.
    """
    event = next((event for event in reversed(part) if kind_of(event) in ("requeued", "ended")), None)
    cause = str(event.get("cause", "?")) if event else "lost"
    if event and "attempt" in event and not event.get("by"):
        return End(cause, event["time"], event)
    signs = [one["time"] for one in part if kind_of(one) not in ("requeued", "ended", "queued", "cancelling")]
    beat = heartbeats.last(run.attempt(int(part[0]["attempt"]))) or 0.0
    latest = event["time"] if event else time.time()
    return End(cause, min(max(*signs, beat), latest), event)


def _ranks(before: Sequence[Event]) -> int:
    """The number of ranks of the newest submission: each submission may have its own."""
    submitted = [event for event in before if kind_of(event) == "submitted"]
    return int(submitted[-1].get("ranks", 1)) if submitted else 1


def _queued_at(before: Sequence[Event], last: End | None) -> float:
    """When the attempt that comes next was submitted or requeued. The scheduler's own requeue is written only when that
    attempt begins: it happened when the one before ended."""
    events = [event for event in before if kind_of(event) in ("submitted", "released", "requeued")]
    if last and events and events[-1].get("by"):
        return last.time
    return float(events[-1]["time"]) if events else float("inf")


def _reached(part: Sequence[Event]) -> tuple[int | None, int | None]:
    """The first and the last step of an attempt. Not every step is logged, but a saved step was done."""
    steps = [int(event["step"]) for event in part if kind_of(event) == "step"]
    saved = [int(e["step"]) for e in part if kind_of(e) == "checkpoint" and e.get("step") and "rejected" not in e]
    begun = next((int(event["step"]) for event in part if kind_of(event) == "resumed"), 0)
    last = max([*steps, *(step for step in saved if step > begun)], default=None)
    return (begun + 1 if last is not None else None), last


def _begins(part: Sequence[Event] | None, last: int | None) -> int:
    """The step from which an attempt continues. As long as it has not written it, assume that no step is lost."""
    if part is None or not any(kind_of(event) in ("resumed", "ready") for event in part):
        return last or 0
    return next((int(event["step"]) for event in part if kind_of(event) == "resumed"), 0)


def _attempt(part: Sequence[Event], following: Sequence[Event] | None, end: End, waited: float, ranks: int) -> Attempt:
    started = part[0]
    steps = [event for event in part if kind_of(event) == "step"]
    first, last = _reached(part)
    resumed = _begins(following, last)
    kept = [event for event in steps if event["step"] <= resumed]
    ready = next((event["time"] for event in part if kind_of(event) == "ready"), None)
    return Attempt(
        number=int(started["attempt"]),
        nodes=str(started.get("nodes", "?")),
        waited=max(0.0, waited),
        lasted=max(0.0, end.time - started["time"]),
        ranks=ranks,
        cause=end.cause,
        first_step=first,
        last_step=last,
        lost_steps=max(0, (last or 0) - resumed),
        productive=max(0.0, kept[-1]["time"] - ready) if kept and ready is not None else 0.0,
        startup=_startup(part),
    )


def _startup(part: Sequence[Event]) -> dict[str, float]:
    """What rank 0 did before its first step, and before that the job script until the process of rank 0 began."""
    event = next((event for event in part if kind_of(event) == "started_up"), None)
    if event is None:
        return {}
    phases = {
        str(name): float(seconds) for name, seconds in event["phases"].items() if isinstance(seconds, (int, float))
    }
    before = event["time"] - part[0]["time"] - sum(phases.values())
    return {"starts the ranks": round(max(0.0, before), 3), **phases}
