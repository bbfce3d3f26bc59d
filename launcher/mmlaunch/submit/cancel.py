"""Ends a run at a user's request, and writes its end into the ledger."""

from __future__ import annotations

import getpass
import time

from mmlaunch.errors import MachineError
from mmlaunch.monitor import status
from mmlaunch.run import heartbeats, ledger, pipeline, shards
from mmlaunch.run.exits import CANCELLED
from mmlaunch.run.files import explained
from mmlaunch.run.ledger import Events
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose
from mmlaunch.schedulers.base import JobRecord, Scheduler

PATIENCE = 60.0  # for saving; a large model on a slow disk is better stopped through its time limit
POLL = 0.2
STALE = 600.0
"""Seconds without a heartbeat after which ranks on a machine that cannot be reached count as gone."""
WITH_RANKS = ("running", "starting", "cancelling", "unknown")
"""The states in which ranks may be running, which can save."""


def cancel(run: RunPaths, now: bool) -> str:
    """Stop a run; returns one sentence of what became of it. Unless `now`, its ranks may save first.

    The end is written when the ranks are gone, and not before.
    """
    if pipeline.is_pipeline(run):
        return _cancel_pipeline(run, now)
    if shards.is_task(run):
        return _cancel_task(run, now)
    state = status.of(run, whole=True)
    if state.final:
        return f"was {state.state} already"
    events = ledger.skim(run.events).of_this_submission
    scheduler = choose.of_run(events)
    record: JobRecord | None = status.job_record(events)
    if record and (place := scheduler.out_of_reach(record)):
        _check_stale(run, place, now)
        record = None
    with explained("cannot write the ledger"):
        ledger.append(run.events, "cancelling", by=getpass.getuser(), now=now)
    record = record or _job_without_number(run, scheduler, events)
    if record:
        _stop(run, scheduler, record, save=not now and state.state in WITH_RANKS)
    if not _is_over(run):  # the job could not write its end itself
        facts = {"cause": "cancelled", "reason": "cancelled by a user", "exit_code": CANCELLED}
        ledger.append(run.events, "ended", state="cancelled", **facts)
    saved = status.of(run, whole=True).saved_step
    return f"cancelled; its newest checkpoint is step {saved}" if saved else "cancelled before its first checkpoint"


def _cancel_pipeline(run: RunPaths, now: bool) -> str:
    """Stop all stages that have not ended: those that need others come first, so that none is released meanwhile."""
    stages = [stage for stage in pipeline.read(run).stages if not stage.reused]
    states = status.of_all([stage.paths for stage in stages])
    still = [stage for stage, one in zip(stages, states, strict=True) if not one.final and one.state != "unknown"]
    if not still:
        return "has ended already"
    for stage in reversed(still):
        cancel(stage.paths, now)
    names = ", ".join(stage.name for stage in still)
    return f"cancelled {len(still)} of {len(stages)} stages ({names}); mmlaunch resume {run.name} goes on with them"


def _cancel_task(run: RunPaths, now: bool) -> str:
    """Stop all shards that have not ended; what they have committed is kept."""
    every = shards.all_shards(run)
    states = status.of_all(every, whole=True)
    still = [shard for shard, one in zip(every, states, strict=True) if not one.final]
    if not still:
        return f"was {status.of(run).state} already"
    events = ledger.skim(run.events)
    scheduler = choose.of_run(events)
    records = events.all("queued")
    for record in records:
        if place := scheduler.out_of_reach(record):
            raise MachineError(f"{run.name} runs on {place}; cancel it there")
    with explained("cannot write the ledger"):
        for paths in (run, *still):
            ledger.append(paths.events, "cancelling", by=getpass.getuser(), now=now)
    running = [shard for shard, one in zip(every, states, strict=True) if one.state in WITH_RANKS]
    if running and not now:
        warned = [_warned(scheduler, record) for record in records]
        until = time.monotonic() + PATIENCE
        while any(warned) and time.monotonic() < until and not all(map(_is_over, running)):
            time.sleep(POLL)
    for record in records:
        scheduler.cancel(record)
    for shard in still:
        if not _is_over(shard):
            facts = {"cause": "cancelled", "reason": "cancelled by a user", "exit_code": CANCELLED}
            ledger.append(shard.events, "ended", state="cancelled", **facts)
    return f"cancelled {len(still)} of {len(every)} shards; mmlaunch resume {run.name} goes on with them"


def _job_without_number(run: RunPaths, scheduler: Scheduler, events: Events) -> JobRecord | None:
    """The job of a submission that could not note its number. If it starts later, it ends at once."""
    if status.job_record(events):
        return None
    try:
        return scheduler.find(run)
    except MachineError as error:
        later = f"if a job was accepted, it ends as soon as it starts; to be sure: mmlaunch cancel {run.name} once more"
        raise MachineError(f"{run.name} is perhaps submitted, and {error}; {later}") from None


def _check_stale(run: RunPaths, place: str, now: bool) -> None:
    """Refuse to call a run cancelled whose ranks may live on another machine."""
    newest = heartbeats.newest(run)
    silent = time.time() - newest if newest else None
    if now and silent is not None and silent > STALE:
        return
    gone = (
        f"if that machine is gone for good: mmlaunch cancel {run.name} --now, {STALE / 60:.0f} minutes after its last"
    )
    raise MachineError(f"{run.name} runs on {place}; cancel it there; {gone} heartbeat")


def _stop(run: RunPaths, scheduler: Scheduler, record: JobRecord, save: bool) -> None:
    """Ask the ranks to save and leave; end the job when they do not, or are not there yet."""
    if save and _warned(scheduler, record):
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and not _is_over(run):
            time.sleep(POLL)
    if not _is_over(run):
        scheduler.cancel(record)


def _warned(scheduler: Scheduler, record: JobRecord) -> bool:
    try:
        scheduler.warn(record)
    except MachineError:  # the job has no ranks that could save
        return False
    return True


def _is_over(run: RunPaths) -> bool:
    return ledger.skim(run.events).of_this_submission.last("ended") is not None
