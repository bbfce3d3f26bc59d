"""What a run cost: its attempts, what each lost, how long it waited, and how much of its time was training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmlaunch.run import ledger
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
    submitted = [event for event in events if kind_of(event) == "submitted"]
    starts = [index for index, event in enumerate(events) if kind_of(event) == "started"]
    parts = [events[start:end] for start, end in zip(starts, [*starts[1:], len(events)], strict=True)]
    attempts = []
    for index, part in enumerate(parts):
        following = parts[index + 1] if index + 1 < len(parts) else None
        attempts.append(_attempt(part, following, events[: starts[index]], now))
    return Report(run.name, tuple(attempts), _ranks(submitted))


def _ranks(before: Sequence[Event]) -> int:
    """The number of ranks of the newest submission: each submission may have its own."""
    submitted = [event for event in before if kind_of(event) == "submitted"]
    return int(submitted[-1].get("ranks", 1)) if submitted else 1


def _queued_at(before: Sequence[Event]) -> float:
    """When the attempt that comes next was submitted or requeued."""
    times = [event["time"] for event in before if kind_of(event) in ("submitted", "requeued")]
    return float(times[-1]) if times else 0.0


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


def _attempt(part: Sequence[Event], following: Sequence[Event] | None, before: Sequence[Event], now: float) -> Attempt:
    started, queued_at = part[0], _queued_at(before)
    ends = [event for event in part if kind_of(event) in ("requeued", "ended")]
    end = ends[-1] if ends else None
    steps = [event for event in part if kind_of(event) == "step"]
    first, last = _reached(part)
    resumed = _begins(following, last)
    kept = [event for event in steps if event["step"] <= resumed]
    ready = next((event["time"] for event in part if kind_of(event) == "ready"), None)
    # An attempt that the scheduler took away is closed when the next one opens; it ended with its last sign of life.
    alive = [event["time"] for event in part if kind_of(event) not in ("requeued", "ended", "queued")]
    taken = end is not None and bool(end.get("by"))
    ended = alive[-1] if taken else end["time"] if end else now
    return Attempt(
        number=int(started["attempt"]),
        nodes=str(started.get("nodes", "?")),
        waited=max(0.0, started["time"] - queued_at),
        lasted=max(0.0, ended - started["time"]),
        ranks=_ranks(before),
        cause=str(end.get("cause", "?")) if end else "goes on",
        first_step=first,
        last_step=last,
        lost_steps=max(0, (last or 0) - resumed),
        productive=max(0.0, kept[-1]["time"] - ready) if kept and ready is not None else 0.0,
    )
