"""How far a run is, by its events: steps, the newest save, committed records."""

from __future__ import annotations

from mmlaunch.run.ledger import Event, Events, kind_of


def saved(events: Events) -> Event:
    """The newest save. A run that was resumed from an earlier one has rejected those after it."""
    newest: Event = {}
    known: dict[int, Event] = {}
    for event in events:
        if kind_of(event) == "checkpoint" and "rejected" not in event and event.get("step") is not None:
            newest = known[event["step"]] = event
        elif kind_of(event) == "resumed" and newest:
            newest = known.get(event["step"], newest)
    return newest


def committed(events: Events) -> Event:
    """How many records of a shard are committed. One that was done and is submitted again was damaged: it begins
    anew."""
    newest, done = Event(), False
    for event in events:
        kind = kind_of(event)
        if kind == "records":
            newest = event
        elif kind == "ended":
            done = event.get("state") == "done"
        elif kind == "submitted" and done:
            newest, done = Event(), False
    return newest


def furthest(events: Events, reached: Event) -> int | None:
    """The last step that is known to be done. Not every step is logged, but what was saved since the last resume was
    done."""
    begun = max((i for i, event in enumerate(events) if kind_of(event) in ("ready", "resumed")), default=0)
    since = [event for event in events.events[begun:] if "rejected" not in event and kind_of(event) == "checkpoint"]
    steps = [event["step"] for event in (reached, *since) if event.get("step") is not None]
    return max(steps, default=None)
