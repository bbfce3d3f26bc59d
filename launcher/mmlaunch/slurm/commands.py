"""Slurm's client programs: argument lists in, text out, and one kind of error."""

from __future__ import annotations

import subprocess

from mmlaunch.errors import MachineError

PATIENCE = 60.0


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


def requeue(job: str) -> None:
    """Put a job back into the queue. Called from inside the job, this ends the caller."""
    call("scontrol", "requeue", job)


def warn(job: str, signal: str) -> None:
    """Send a signal to the steps of a job, not to its batch script."""
    call("scancel", f"--signal={signal}", job)


def cancel(job: str) -> None:
    """End a job."""
    call("scancel", job)
