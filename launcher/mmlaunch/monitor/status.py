"""What state a run is in: derived from its events and from whether its process lives, never stored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmlaunch.run import ledger
from mmlaunch.run.heartbeats import laggard
from mmlaunch.run.ledger import Event, Events
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers.local import process as local_process
from mmlaunch.schedulers.slurm.queue import Job, look
from mmlaunch.schedulers.slurm.states import WITHOUT_A_WORD, JobState

FINAL = ("done", "failed", "cancelled")
SILENT = 60.0
"""Seconds without a sign of life that are worth a word; the watchdog allows no less to a step."""


@dataclass(frozen=True)
class Status:
    """One line of `mmlaunch status`."""

    run: str
    state: str
    """submitted, pending, held, starting, running, restarting, cancelling, lost, unknown, done, failed, cancelled"""
    method: str
    attempt: int
    step: int | None
    steps: int | None
    rate: float | None
    loss: float | None
    saved_step: int | None
    saved_seconds_ago: float | None
    next: str
    reason: str
    directory: str
    submitted: float | None
    torn_lines: int

    @property
    def final(self) -> bool:
        return self.state in FINAL

    @property
    def shown_state(self) -> str:
        """The state, with the attempt where there was more than one."""
        live = self.state in ("running", "starting", "restarting")
        return f"{self.state}, attempt {self.attempt}" if live and self.attempt > 1 else self.state

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def of(run: RunPaths, whole: bool = False) -> Status:
    """The status of a run; unless `whole`, only the ends of a long ledger are read."""
    return of_all([run], whole)[0]


def of_all(runs: Sequence[RunPaths], whole: bool = False) -> list[Status]:
    """The status of many runs, with one question to Slurm for all of them."""
    ledgers = [_ledger(run, whole) for run in runs]
    now = [events.of_this_submission for events in ledgers]
    jobs = look(job for events in now if (job := slurm_job(events)) and not events.last("ended"))
    over = {number for number, job in jobs.items() if job.state == JobState.OVER}
    for index, run in enumerate(runs):
        if slurm_job(now[index]) in over:
            ledgers[index] = _ledger(run, whole)  # its last word may have come while Slurm was asked
    return [_derive(run, events, jobs) for run, events in zip(runs, ledgers, strict=True)]


def _ledger(run: RunPaths, whole: bool) -> Events:
    """The events of a run; one that may not be read has none, and does not hide the others."""
    try:
        return (ledger.read if whole else ledger.read_ends)(run.events)
    except OSError:
        return Events(())


def first_event(run: RunPaths, kind: str) -> Event:
    """The first event of a kind, as far as the ledger can be read."""
    try:
        return next((event for event in ledger.read_ends(run.events) if event["event"] == kind), {})
    except OSError:
        return {}


def _derive(run: RunPaths, events: Events, jobs: Mapping[str, Job]) -> Status:
    try:
        return derive(run, events, time.time(), jobs)
    except (KeyError, TypeError, ValueError):  # an event of another version, or of another program
        return derive(run, Events((), len(events.events)), time.time())


def slurm_job(events: Events) -> str | None:
    """The number of a run's Slurm job; None for a local run."""
    submitted, queued = events.last("submitted") or {}, events.last("queued") or {}
    return str(queued["job"]) if submitted.get("executor") == "slurm" and queued.get("job") else None


def derive(run: RunPaths, events: Events, now: float, jobs: Mapping[str, Job] | None = None) -> Status:
    """The status that these events mean, and what Slurm says of the run's job.

    A run that was resumed stands where its earlier submissions have brought it, until it says otherwise.
    """
    reached = events.last("step", "resumed") or {}
    saved = next(
        (event for event in reversed(events.events) if event["event"] == "checkpoint" and "rejected" not in event), {}
    )
    events = events.of_this_submission
    job = (jobs or {}).get(slurm_job(events) or "")
    submitted = events.last("submitted") or {}
    attempts = [int(event["attempt"]) for event in events if isinstance(event.get("attempt"), int)]
    step = events.last("step", "ready") or {}
    state, reason = _state(events, job)
    if state in ("starting", "running"):
        reason = reason or _stuck(run, events, now)
    running = state == "running" and step.get("event") == "step"
    return Status(
        run=run.name,
        state=state,
        method=str(submitted.get("method", "?")),
        attempt=max(attempts, default=0),
        step=reached.get("step"),
        steps=step.get("steps") or submitted.get("steps"),
        rate=step.get("rate") if running else None,
        loss=_number(reached.get("loss")),
        saved_step=saved.get("step"),
        saved_seconds_ago=round(now - saved["time"], 1) if saved else None,
        next=_next(run.name, state, step, events, now) if not (running and reason) else f"mmlaunch why {run.name}",
        reason=reason,
        directory=str(run.root),
        submitted=submitted.get("time"),
        torn_lines=events.torn,
    )


def _state(events: Events, job: Job | None) -> tuple[str, str]:
    """The state and, where it needs one, its reason."""
    last = events.last(
        "submitted", "queued", "started", "reference", "ready", "step", "requeued", "ended", "cancelling"
    )
    if last is None:
        return "unknown", "its ledger is empty or cannot be read"
    if last["event"] == "ended":
        failed = events.last("failed") or {}
        cause = f"{failed['cause']}: {failed.get('evidence', '')}; " if last["state"] == "failed" and failed else ""
        return str(last["state"]), f"{cause}{last.get('reason', '')}"
    if (missing := _slurm_state(job) if slurm_job(events) else _process_state(events)) is not None:
        return missing
    if events.last("cancelling", "submitted", "started") == events.last("cancelling"):
        return "cancelling", ""
    if last["event"] == "reference":
        return "starting", f"asks its reference: {last['done']} of {last['total']} examples"
    names = {
        "submitted": "submitted",
        "queued": "submitted",
        "started": "starting",
        "ready": "running",
        "step": "running",
    }
    return names.get(str(last["event"]), "restarting"), str(last.get("reason", ""))


def _slurm_state(job: Job | None) -> tuple[str, str] | None:
    """What only Slurm can tell; None while the job runs and its own events say more."""
    if job is None or job.state == JobState.UNKNOWN:
        return "unknown", "Slurm does not answer for its job: missing is not finished"
    if job.state == JobState.OVER:
        word = job.word.partition(" ")[0]
        means = f"{WITHOUT_A_WORD[word]}, and it" if word in WITHOUT_A_WORD else "and the job"
        return "lost", f"Slurm says {word}: {means} left no word of its own"
    if job.state == JobState.STUCK or job.advice:
        return "held", f"{job.word} ({job.reason})" + (f": {job.advice}" if job.advice else "")
    if job.state == JobState.WAITING:
        start = f", estimated start {job.start.replace('T', ' ')}" if job.start else ""
        return "pending", f"{job.reason}{start}"
    return None


def _stuck(run: RunPaths, events: Events, now: float) -> str:
    """Which rank keeps the others waiting, when nothing has moved for longer than is usual between two lines."""
    steps = events.all("step")[-8:]
    usual = (steps[-1]["time"] - steps[0]["time"]) / (len(steps) - 1) if len(steps) > 1 else 0.0
    since = now - max(SILENT, 2 * usual)
    started = events.last("started")
    if started is None or events.events[-1]["time"] > since:
        return ""  # without a look at the heartbeats of a thousand ranks
    beat = laggard(run.attempt(int(started["attempt"])), since)
    return f"rank {beat.rank} has not moved for {now - beat.time:.0f} s ({beat.doing})" if beat else ""


def _process_state(events: Events) -> tuple[str, str] | None:
    """Whether a local run's process is gone or elsewhere; None while it lives."""
    living = alive(events)
    if living is False:
        return "lost", "its process is gone and left no word: killed, or the machine went down"
    if living is None:
        return "unknown", f"runs on {(_process(events) or {}).get('host', 'another machine')}: ask there"
    return None


def alive(events: Events) -> bool | None:
    """Whether a local run's process lives; None when this machine cannot tell."""
    process = _process(events)
    if process is None:
        newest = events.events[-1]["time"] if events.events else 0
        return time.time() - newest < 60  # submitted a moment ago, not queued yet
    return local_process.alive(process)


def _process(events: Events) -> Event | None:
    return events.last("queued", "started")


def _next(name: str, state: str, step: Event, events: Events, now: float) -> str:
    """What happens next, or what a human would type."""
    if state == "running" and (left := seconds_left(events)) is not None:
        return f"ends about {time.strftime('%H:%M', time.localtime(now + left))}"
    if state == "restarting":
        requeued = events.last("requeued") or {}
        wait = requeued.get("time", now) + requeued.get("pause", 0) - now
        return f"starts again in {max(0, round(wait))} s"
    return {
        "failed": f"mmlaunch why {name}", "lost": f"mmlaunch why {name}", "held": f"mmlaunch status {name}",
        "submitted": "starts at once", "pending": "starts when Slurm has room", "starting": "loads the model",
        "cancelling": "saves and ends", "done": f"mmlaunch export {name}",
    }.get(state, "")  # fmt: skip


def seconds_left(events: Events) -> float | None:
    """The time that the remaining steps will take, by the pace of the newest ones."""
    steps = events.all("step")[-8:]
    first, last = (steps[0], steps[-1]) if steps else ({}, {})
    done = last.get("step", 0) - first.get("step", 0)
    if done <= 0 or not last.get("steps") or first.get("attempt") != last.get("attempt"):
        return None
    return float((last["steps"] - last["step"]) * (last["time"] - first["time"]) / done)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
