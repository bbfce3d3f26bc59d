"""Ending a run because a user says so, and leaving its ledger clean."""

from __future__ import annotations

import getpass
import os
import signal
import time

from mmlaunch.errors import MachineError
from mmlaunch.monitor import status
from mmlaunch.run import ledger
from mmlaunch.run.exits import CANCELLED
from mmlaunch.run.files import explained
from mmlaunch.run.ledger import Event
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers.local import process as local_process
from mmlaunch.schedulers.slurm import commands

PATIENCE = 60.0  # for saving; a large model on a slow disk is better asked with a longer time limit
POLL = 0.2


def cancel(run: RunPaths, now: bool) -> str:
    """Stop a run; returns one sentence of what became of it."""
    state = status.of(run, whole=True)
    if state.final:
        return f"was {state.state} already"
    events = ledger.read(run.events).of_this_submission
    job, process = status.slurm_job(events), events.last("queued", "started")
    living = job is not None or status.alive(events)
    if living is None:
        raise MachineError(f"{run.name} runs on {(process or {}).get('host')}; cancel it there")
    with explained("cannot write the ledger"):
        ledger.append(run.events, "cancelling", by=getpass.getuser(), now=now)
    if job is not None:
        _stop_job(job, run, now or state.state not in ("running", "starting", "cancelling"))
    elif process is not None:
        _stop(process, now)
    if not _over(run):  # it could not say so itself
        facts = {"cause": "cancelled", "reason": "cancelled by a user", "exit_code": CANCELLED}
        ledger.append(run.events, "ended", state="cancelled", **facts)
    saved = status.of(run, whole=True).saved_step
    return f"cancelled; its newest checkpoint is step {saved}" if saved else "cancelled before its first checkpoint"


def _over(run: RunPaths) -> bool:
    return ledger.read(run.events).of_this_submission.last("ended") is not None


def _stop_job(job: str, run: RunPaths, now: bool) -> None:
    """Ask the ranks of a Slurm job to save and leave; end it when they do not, or are not there yet."""
    if not now:
        commands.warn(job, "USR2")
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and not _over(run):
            time.sleep(POLL)
    if not _over(run):
        commands.cancel(job)


def _stop(process: Event, now: bool) -> None:
    """Ask the ranks of a local run to save and leave, and end the whole session when they do not."""
    if not now:
        # Not the session: data workers would be ended too, and a rank that loses its workers cannot save.
        for pid in local_process.children(int(process["pid"])):
            _send(pid, signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and local_process.members(process):
            time.sleep(POLL)
    for pid in local_process.members(process):
        _send(pid, signal.SIGKILL)
    time.sleep(POLL)


def _send(target: int, number: signal.Signals) -> None:
    try:
        os.kill(target, number)
    except ProcessLookupError:
        return
    except PermissionError:
        raise MachineError(f"process {target} belongs to someone else; ask its owner to cancel the run") from None
