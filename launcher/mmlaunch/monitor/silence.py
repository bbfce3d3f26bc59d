"""Why a job that lives writes nothing into its ledger: a rank stands still, or nothing can be written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from mmlaunch.errors import BadInput
from mmlaunch.recipe import resolved
from mmlaunch.run import heartbeats, ledger
from mmlaunch.run.heartbeats import straggler
from mmlaunch.run.ledger import Events
from mmlaunch.run.paths import RunPaths

SILENT = 60.0
"""After so many seconds without progress, status names the slowest rank. The watchdog gives a step at least as long."""
UNSEEN = 300.0
"""The same where no heartbeat could ever be written."""


@dataclass(frozen=True)
class Silence:
    """What heartbeats tell of a job whose ledger says nothing new."""

    reason: str = ""
    step: int | None = None
    """The last step that is done, if the ledger does not know of it."""
    unwritten: bool = False
    """Whether it is the writing that stands still."""


def of(run: RunPaths, events: Events, now: float) -> Silence:
    """Which rank keeps the others waiting, or that events cannot be written, when nothing has been written for longer
    than is usual between two lines."""
    steps = events.all("step")[-ledger.RECENT :]
    usual = (steps[-1]["time"] - steps[0]["time"]) / (len(steps) - 1) if len(steps) > 1 else 0.0
    since = now - max(SILENT, 2 * usual)
    started = events.last("started")
    if started is None or (last := events.events[-1]["time"]) > since:
        return Silence()  # do not read the heartbeats of a thousand ranks
    attempt = run.attempt(int(started["attempt"]))
    if rank := straggler(attempt, since):
        alive = heartbeats.last(attempt) or rank.alive
        if alive > since:
            return Silence(f"rank {rank.rank} has not moved for {now - rank.time:.0f} s ({rank.doing})")
        return Silence(f"no rank has left a sign of life for {now - alive:.0f} s: {_disk(run)}", unwritten=True)
    if steps and last < now - max(UNSEEN, 10 * usual) and heartbeats.last(attempt) is None:
        what = f"no rank leaves a sign of life, and nothing was written for {now - last:.0f} s"
        return Silence(f"{what}: {_disk(run)}", unwritten=True)
    first, logged = heartbeats.read(attempt.heartbeat(0)), max((int(step["step"]) for step in steps), default=0)
    done = (first.step or 0) - 1 if first else 0
    if done // _log_every(run) * _log_every(run) <= logged:
        return Silence()
    behind = f"its ledger is behind: step {done} is done, and nothing was written for {now - last:.0f} s"
    return Silence(f"{behind}: {_disk(run)}", done, unwritten=True)


def _log_every(run: RunPaths) -> int:
    """After how many steps a line is written."""
    try:
        return resolved.read(run.resolved).log.every
    except (BadInput, OSError):
        return 1 << 60  # nobody knows: no line is missed


def _disk(run: RunPaths) -> str:
    """What may be wrong with the disk of a run directory that is not written any more."""
    try:
        full = shutil.disk_usage(run.root).free < 1 << 20
    except OSError as error:
        return f"{run.root} cannot be reached ({error.strerror})"
    return "its disk is full" if full else "its disk may be full (a quota), read-only, or not reached from its nodes"
