"""Slurm's client programs: argument lists in, text out, and one kind of error."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from mmlaunch.errors import MachineError

T = TypeVar("T")

PATIENCE = 60.0
AWAY_LIMIT, ODD_LIMIT = 3600.0, 120.0
"""For how long a job asks a controller that is away, and one that answers with an error."""
_AWAY = re.compile(
    r"[Uu]nable to (?:contact|connect)|Unexpected message|timed out|[Cc]onnection (?:refused|reset)|[Cc]ommunication|"
    r"did not answer|[Zz]ero [Bb]ytes|[Nn]o route|[Nn]etwork is|[Tt]emporar|[Ss]hutdown in progress|standby"
)


class SlurmError(MachineError):
    """A Slurm command that failed, or did not answer."""


def call(program: str, *arguments: str) -> str:
    """The output of a Slurm command."""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)
    except FileNotFoundError:
        raise SlurmError(f"{program} is not on this machine's PATH; go to a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{program} did not answer within {PATIENCE:.0f} s; try again later") from None
    if done.returncode:
        raise SlurmError(f"{program}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def requeue(job: str, pause: int = 0) -> None:
    """Put a job back into the queue, to begin no sooner than after `pause` seconds. Called from inside the job.

    Slurm answers, and sends the caller SIGTERM at once. Only then is the job pending, so only then can its start time
    be set. That time replaces Slurm's own delay, in which the old job leaves its nodes, so it must not be sooner.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    patiently(lambda: _requeue(job))
    if pause and pause > requeue_delay(configuration()):
        call("scontrol", "update", f"JobId={job}", f"StartTime=now+{pause + 1}")  # it counts whole seconds


def _requeue(job: str) -> None:
    try:
        call("scontrol", "requeue", job)
    except SlurmError as error:
        if "pending execution" not in str(error):  # Slurm has put it back into the queue itself, after a preemption
            raise


def patiently(ask: Callable[[], T]) -> T:
    """Ask Slurm, from inside a job that has nothing else to do: while the controller is away, wait and ask again.

    The job's own time limit may end the wait before.
    """
    began, pause = time.monotonic(), 1.0
    while True:
        try:
            return ask()
        except SlurmError as error:
            limit = AWAY_LIMIT if _AWAY.search(str(error)) else ODD_LIMIT
            if time.monotonic() - began + pause > limit:
                raise
            print(f"mmlaunch: {error}; next try in {pause:.0f} s", file=sys.stderr, flush=True)
        time.sleep(pause)
        pause = min(2 * pause, 60.0)


def requeue_delay(config: Mapping[str, str]) -> int:
    """The seconds for which Slurm itself keeps a requeued job waiting: as long as its credentials are valid."""
    match = re.search(r"\bcred_expire=(\d+)", config.get("AuthInfo", ""))
    return int(match.group(1)) if match else 120  # slurm.conf(5), AuthInfo


def configuration() -> dict[str, str]:
    """`scontrol show config` as a mapping."""
    pairs = (line.partition("=") for line in call("scontrol", "show", "config").splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def signal_steps(job: str, signal: str) -> None:
    """Send a signal to the steps of a job, not to its batch script."""
    call("scancel", f"--signal={signal}", job)
