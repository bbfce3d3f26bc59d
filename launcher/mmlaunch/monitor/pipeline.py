"""The state of a pipeline or a sweep: derived from the states of its stages, never stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmlaunch.monitor import status
from mmlaunch.monitor.shards import BEYOND_REPAIR, LIVE
from mmlaunch.monitor.state import Status
from mmlaunch.run import ledger, pipeline
from mmlaunch.run.paths import RunPaths
from mmlaunch.run.pipeline import Definition, Stage

WAITING, BLOCKED = "waiting", "blocked"
NOT_RELEASED = "it was not released"


@dataclass(frozen=True)
class View:
    """A pipeline and its stages, as they are now."""

    whole: Status
    definition: Definition
    stages: tuple[Status, ...]
    """In the order of the definition."""

    def in_state(self, *states: str) -> list[str]:
        """The names of the stages that are in one of these states."""
        named = zip(self.definition.stages, self.stages, strict=True)
        return [stage.name for stage, one in named if one.state in states]


def of(run: RunPaths) -> View:
    """How a pipeline and its stages stand."""
    return of_all([run])[0]


def of_all(runs: Sequence[RunPaths]) -> list[View]:
    """The same for several, with one look at each scheduler's queue."""
    definitions = [pipeline.read(run) for run in runs]
    every = [stage.paths for definition in definitions for stage in definition.stages]
    statuses = iter(status.of_all(every))
    return [
        _joined(run, definition, [next(statuses) for _ in definition.stages])
        for run, definition in zip(runs, definitions, strict=True)
    ]


def _joined(run: RunPaths, definition: Definition, own: Sequence[Status]) -> View:
    by_name = {stage.name: one for stage, one in zip(definition.stages, own, strict=True)}
    for stage in definition.stages:  # each stands behind those that it needs
        if by_name[stage.name].state == WAITING:
            by_name[stage.name] = _waiting(run, stage, by_name)
        elif by_name[stage.name].state == "held":
            by_name[stage.name] = replace(by_name[stage.name], next=f"mmlaunch resume {run.name}")
    stages = tuple(by_name[stage.name] for stage in definition.stages)
    submitted = ledger.skim(run.events).last("submitted")
    state, reason = _state(definition, stages)
    if submitted is None:
        state, reason = "held", "its submission was interrupted: no stage begins"
    counts = Counter(one.state for one in stages)
    shown = ", ".join(f"{count} {name}" for name, count in counts.items())
    whole = Status(
        run=run.name,
        state=state,
        method=definition.kind,
        attempt=1,
        step=counts["done"],
        steps=len(stages),
        rate=None,
        loss=None,
        saved_step=None,
        saved_seconds_ago=None,
        next=_next(run, state, definition.kind),
        reason=f"{len(stages)} {definition.member}s: {shown}{f'; {reason}' if reason else ''}",
        directory=str(run.root),
        submitted=(submitted or {}).get("time"),
        torn_lines=sum(one.torn_lines for one in stages),
    )
    return View(whole, definition, stages)


def _waiting(run: RunPaths, stage: Stage, before: dict[str, Status]) -> Status:
    """What a stage that was not released waits for."""
    now = before[stage.name]
    unwell = [name for name in stage.needs if before[name].state in (*BEYOND_REPAIR, BLOCKED)]
    if unwell:
        reason = f"{', '.join(unwell)} {'is' if len(unwell) == 1 else 'are'} not done"
        return replace(now, state=BLOCKED, reason=reason, next=f"mmlaunch why {run.name}")
    missing = [name for name in stage.needs if before[name].state != "done"]
    if missing:
        return replace(now, reason=f"for {', '.join(missing)}", next=f"begins after {', '.join(missing)}")
    if any(one.state in LIVE and one.state != WAITING for one in before.values()):
        return replace(now, reason="for room on this machine", next="begins when there is room")
    return replace(now, reason=NOT_RELEASED, next=f"mmlaunch resume {run.name}")


def missed(view: View) -> list[str]:
    """The stages that could begin, and were not released: whoever should have done it was killed."""
    return [
        stage.name
        for stage, now in zip(view.definition.stages, view.stages, strict=True)
        if now.state == WAITING and now.reason == NOT_RELEASED
    ]


def _state(definition: Definition, stages: Sequence[Status]) -> tuple[str, str]:
    names = {one.state for one in stages}
    unwell = [stage.name for stage, one in zip(definition.stages, stages, strict=True) if one.state in BEYOND_REPAIR]
    reason = f"{', '.join(unwell[:4])} did not end well" if unwell else ""
    live = next((state for state in LIVE if state in names and state != WAITING), None)
    if live is not None:
        return ("running" if live in ("starting", "restarting") else live), reason
    if unwell:
        first = next(one.state for one in stages if one.state in BEYOND_REPAIR)
        return ("failed" if first == "unknown" else first), reason
    if WAITING in names:
        return "held", "stages wait that could begin"
    if definition.rungs and max(one.saved_step or 0 for one in stages) < definition.rungs[-1]:
        return "held", "the best points have not gone on yet"
    return "done", ""


def _next(run: RunPaths, state: str, kind: str) -> str:
    if state == "done":
        return f"mmlaunch table {run.name}" if kind == "sweep" else f"mmlaunch report {run.name} --html"
    if state in ("failed", "lost", "unknown"):
        return f"mmlaunch why {run.name}"
    return f"mmlaunch resume {run.name}" if state in ("held", "cancelled") else ""
