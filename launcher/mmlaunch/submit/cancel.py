"""Ends a run at a user's request, and writes its end into the ledger."""

from __future__ import annotations

import getpass
import time

from mmlaunch.errors import MachineError
from mmlaunch.monitor import status
from mmlaunch.run import ledger
from mmlaunch.run.exits import CANCELLED
from mmlaunch.run.files import explained
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose
from mmlaunch.schedulers.base import JobRecord, Scheduler

PATIENCE = 60.0  # for saving; a large model on a slow disk is better stopped through its time limit
POLL = 0.2
WITH_RANKS = ("running", "starting", "cancelling")
"""The states in which ranks may be running, which can save."""


def cancel(run: RunPaths, now: bool) -> str:
    """Stop a run; returns one sentence of what became of it. Unless `now`, its ranks may save first."""
    state = status.of(run, whole=True)
    if state.final:
        return f"was {state.state} already"
    events = ledger.read(run.events).of_this_submission
    scheduler, record = choose.of_run(events), status.job_record(events)
    if record and (place := scheduler.out_of_reach(record)):
        raise MachineError(f"{run.name} runs on {place}; cancel it there")
    with explained("cannot write the ledger"):
        ledger.append(run.events, "cancelling", by=getpass.getuser(), now=now)
    if record:
        _stop(run, scheduler, record, save=not now and state.state in WITH_RANKS)
    if not _is_over(run):  # the job could not write its end itself
        facts = {"cause": "cancelled", "reason": "cancelled by a user", "exit_code": CANCELLED}
        ledger.append(run.events, "ended", state="cancelled", **facts)
    saved = status.of(run, whole=True).saved_step
    return f"cancelled; its newest checkpoint is step {saved}" if saved else "cancelled before its first checkpoint"


def _stop(run: RunPaths, scheduler: Scheduler, record: JobRecord, save: bool) -> None:
    """Ask the ranks to save and leave; end the job when they do not, or are not there yet."""
    if save:
        scheduler.warn(record)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and not _is_over(run):
            time.sleep(POLL)
    if not _is_over(run):
        scheduler.cancel(record)


def _is_over(run: RunPaths) -> bool:
    return ledger.read(run.events).of_this_submission.last("ended") is not None
