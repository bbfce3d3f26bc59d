"""The state of a run: derived from its events and from what its scheduler says of its job, never stored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from mmlaunch.errors import MachineError, UserError
from mmlaunch.monitor import progress, silence
from mmlaunch.monitor.shards import joined
from mmlaunch.monitor.silence import Silence
from mmlaunch.monitor.state import Status, ends_about
from mmlaunch.run import ledger, pipeline, shards
from mmlaunch.run.event_types import Kind
from mmlaunch.run.ledger import Event, Events, kind_of
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose
from mmlaunch.schedulers.base import Job, JobRecord, JobState

_STATES: dict[Kind, str] = {
    "submitted": "submitted", "unconfirmed": "submitted", "queued": "submitted", "released": "submitted",
    "started": "starting", "ready": "running", "step": "running",
    "records": "running",
}  # fmt: skip
"""The state of a run whose job lives, by its newest event."""
_NEVER_QUEUED = "no job of this run waits or runs: its submission was interrupted, or not accepted"
_A_MOMENT = 60.0
"""Seconds between the two events of a submission, at most."""


def of(run: RunPaths, whole: bool = False) -> Status:
    """The status of a run; unless `whole`, only the ends of a long ledger are read."""
    return of_all([run], whole)[0]


def of_all(runs: Sequence[RunPaths], whole: bool = False) -> list[Status]:
    """The status of many runs, with one look at each scheduler's queue for all of its runs."""
    parts = [shards.all_shards(run) if shards.is_task(run) else [] for run in runs]
    if not any(parts):
        return _of_all(runs, whole)
    everything = [*runs, *(one for of_run in parts for one in of_run)]
    statuses = iter(_of_all(everything, whole))
    own = [next(statuses) for _ in runs]
    return [
        joined(run, one, [next(statuses) for _ in of_run]) if of_run else one
        for run, one, of_run in zip(runs, own, parts, strict=True)
    ]


def _of_all(runs: Sequence[RunPaths], whole: bool) -> list[Status]:
    ledgers = [_ledger(run, whole) for run in runs]
    jobs = _look(runs, [events.of_this_submission for events in ledgers])
    for index, job in jobs.items():
        if job.state == JobState.OVER:
            ledgers[index] = _ledger(runs[index], whole)  # its last word may have come in the meantime
    return [_derive(run, ledgers[index], jobs.get(index)) for index, run in enumerate(runs)]


def _look(runs: Sequence[RunPaths], ledgers: Sequence[Events]) -> dict[int, Job]:
    """The job of every run that has one and has not ended, by the run's place in the sequence."""
    questions: dict[str, list[tuple[int, JobRecord]]] = {}
    jobs: dict[int, Job] = {}
    for index, (run, events) in enumerate(zip(runs, ledgers, strict=True)):
        if events.last("ended") or not events.events or shards.is_task(run):
            continue
        if pipeline.waiting(events) and job_record(events) is None:  # it is submitted once it is released
            continue
        try:
            record = job_record(events) or _by_name(run, events)
        except MachineError as error:
            jobs[index] = Job(JobState.UNKNOWN, str(error))
            continue
        if record is None:
            continue
        try:
            questions.setdefault(choose.of_run(events).name, []).append((index, record))
        except UserError as error:  # a scheduler of another version
            jobs[index] = Job(JobState.UNKNOWN, str(error))
    for name, records in questions.items():
        answers = choose.named(name).look([record for _, record in records])
        jobs.update((index, job) for (index, _), job in zip(records, answers, strict=True))
    return jobs


def _by_name(run: RunPaths, events: Events) -> JobRecord | None:
    """The job of a submission that could not note its number, if the scheduler has one under the run's name."""
    if events.last("unconfirmed") is None and time.time() - events.events[-1]["time"] < _A_MOMENT:
        return None
    try:
        return choose.of_run(events).find(run)
    except UserError:  # a scheduler of another version
        return None


def job_record(events: Events) -> Event | None:
    """The newest event that names the run's job."""
    return events.last("queued", "started")


def _ledger(run: RunPaths, whole: bool) -> Events:
    """The events of a run. A ledger that cannot be read counts as empty, so that the other runs are still shown."""
    try:
        return (ledger.skim if whole else ledger.read_ends)(run.events)
    except OSError:
        return Events(())


def first_event(run: RunPaths, kind: Kind) -> Event:
    """The first event of a kind; empty if there is none or the ledger cannot be read."""
    try:
        return next((event for event in ledger.read_ends(run.events) if kind_of(event) == kind), {})
    except OSError:
        return {}


def _derive(run: RunPaths, events: Events, job: Job | None) -> Status:
    try:
        return derive(run, events, time.time(), job)
    except (KeyError, TypeError, ValueError):  # an event of another version, or of another program
        return derive(run, Events((), len(events.events)), time.time())


def derive(run: RunPaths, events: Events, now: float, job: Job | None = None) -> Status:
    """The status that these events mean, and what the scheduler says of the run's job.

    A resumed run shows the step that its earlier submissions had reached, until it logs one of its own; and a shard the
    records that they had committed.
    """
    reached = events.last("step", "resumed") or {}
    furthest = progress.furthest(events, reached)
    saved = progress.saved(events)
    committed = progress.committed(events)
    events = events.of_this_submission
    submitted = events.last("submitted") or {}
    attempts = [int(event["attempt"]) for event in events if isinstance(event.get("attempt"), int)]
    step = events.last("step", "ready") or {}
    records = events.last("records") or {}
    state, reason = _state(events, job or _look([run], [events]).get(0))
    quiet = Silence()
    if state in ("starting", "running") and not reason:
        quiet = silence.of(run, events, now)
        reason, furthest = quiet.reason, max((n for n in (furthest, quiet.step) if n is not None), default=None)
    running = state == "running" and (step.get("event") == "step" or bool(records))
    return Status(
        run=run.name,
        state=state,
        method=str(submitted.get("method", "?")),
        attempt=max(attempts, default=0),
        step=committed.get("done", furthest),
        steps=committed.get("total") or step.get("steps") or submitted.get("rows") or submitted.get("steps"),
        rate=(records or step).get("rate") if running else None,
        loss=_number(reached.get("loss")),
        saved_step=saved.get("step"),
        saved_seconds_ago=max(0.0, round(now - saved["time"], 1)) if saved else None,
        next=_next(run.name, state, step, events, now) if not (running and reason) else f"mmlaunch why {run.name}",
        reason=reason,
        directory=str(run.root),
        submitted=submitted.get("time"),
        torn_lines=events.torn,
        silent=quiet.unwritten,
        stands_still=state == "running" and bool(quiet.reason) and not quiet.unwritten,
        failed_rows=committed.get("failed") or {},
    )


def _state(events: Events, job: Job | None) -> tuple[str, str]:
    """The state and, where it needs one, its reason."""
    last = events.last(
        "submitted",
        "unconfirmed",
        "queued",
        "released",
        "started",
        "reference",
        "ready",
        "step",
        "records",
        "requeued",
        "cancelling",
    )
    if ended := events.last("ended"):  # for good, whatever a rank that was slow to die has written after it
        last = ended
    if last is None:
        return "unknown", "its ledger is empty or cannot be read"
    kind = kind_of(last)
    if kind == "ended":
        failed = events.last("failed") or {}
        cause = f"{failed['cause']}: {failed.get('evidence', '')}; " if last["state"] == "failed" and failed else ""
        return str(last["state"]), f"{cause}{last.get('reason', '')}"
    if pipeline.waiting(events) and (job is None or job.state in (JobState.WAITING, JobState.STUCK)):
        return "waiting", "until the stages that it needs are done"
    if (by_job := _of_job(events, job)) is not None:
        return by_job
    if events.last("cancelling", "submitted", "started") == events.last("cancelling"):
        return "cancelling", ""
    if kind == "reference":
        return "starting", f"asks its reference: {last['done']} of {last['total']} examples"
    return _STATES.get(kind, "restarting"), str(last.get("reason", ""))


def _of_job(events: Events, job: Job | None) -> tuple[str, str] | None:
    """What only the scheduler can tell; None while the job runs and its own events say more."""
    if job is None:  # submitted a moment ago, not queued yet
        newest = events.events[-1]["time"] if events.events else 0
        unconfirmed = events.last("unconfirmed")
        return None if not unconfirmed and time.time() - newest < _A_MOMENT else ("lost", _NEVER_QUEUED)
    if job.cancelled:
        return "cancelled", job.reason
    if job.state == JobState.UNKNOWN and (unconfirmed := events.last("unconfirmed")) and job_record(events) is None:
        return "perhaps submitted", str(unconfirmed["reason"])
    state = {
        JobState.UNKNOWN: "unknown", JobState.OVER: "lost", JobState.STUCK: "held", JobState.WAITING: "pending",
    }.get(job.state)  # fmt: skip
    return (state, job.reason) if state else None


def _next(name: str, state: str, step: Event, events: Events, now: float) -> str:
    """What happens next, or what the user should type."""
    if state == "running" and (left := seconds_left(events)) is not None:
        return ends_about(now, left)
    if state == "restarting":
        requeued = events.last("requeued") or {}
        wait = requeued.get("time", now) + requeued.get("pause", 0) - now
        return f"starts again in {max(0, round(wait))} s"
    return {
        "failed": f"mmlaunch why {name}", "lost": f"mmlaunch why {name}", "held": f"mmlaunch status {name}",
        "perhaps submitted": f"mmlaunch status {name}", "unknown": f"mmlaunch cancel {name}",
        "submitted": "starts at once", "pending": _start_condition(events), "starting": "loads the model",
        "cancelling": "saves and ends", "done": _when_done(name, events),
    }.get(state, "")  # fmt: skip


def _when_done(name: str, events: Events) -> str:
    task, is_shard, _ = name.rpartition("/")
    of_task = is_shard and (events.last("submitted") or {}).get("rows") is not None
    return f"mmlaunch results {task}" if of_task else f"mmlaunch export {name}"


def _start_condition(events: Events) -> str:
    try:
        return choose.of_run(events).start_condition
    except UserError:
        return ""


def seconds_left(events: Events) -> float | None:
    """How long the remaining steps will take, at the speed of the newest ones."""
    steps = events.all("step")[-ledger.RECENT :]
    first, last = (steps[0], steps[-1]) if steps else ({}, {})
    done = last.get("step", 0) - first.get("step", 0)
    seconds = last["time"] - first["time"] if steps else 0.0
    if done <= 0 or seconds <= 0 or not last.get("steps") or first.get("attempt") != last.get("attempt"):
        return None
    return float(max(0, last["steps"] - last["step"]) * seconds / done)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
