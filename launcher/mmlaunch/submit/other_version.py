"""Resumes a run of another version of mmlaunch with the launcher in the run's own snapshot of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence

from mmlaunch import __version__
from mmlaunch.errors import MachineError
from mmlaunch.run.paths import RunPaths

_VERSION = re.compile(r"""^__version__ = ["']([^"']+)["']""", re.MULTILINE)
PATIENCE = 120.0  # a login node that is busy takes its time to import from a network disk


def other_version(run: RunPaths) -> str | None:
    """The version of the run's snapshot, if it is not ours. Its scripts and checkpoints are then of that version."""
    try:
        match = _VERSION.search(run.launcher.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no text"
        raise MachineError(
            f"{run.name} has no launcher in its snapshot ({run.launcher}: {reason}); {_new(run)}"
        ) from None
    version = match.group(1) if match else "unknown"
    return version if version != __version__ else None


def command_of_snapshot(run: RunPaths, version: str, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command that runs the snapshot's launcher, and its environment. It is first checked that it runs here."""
    path = os.pathsep.join(part for part in (str(run.code), os.environ.get("PYTHONPATH")) if part)
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}  # no other copy comes before it
    program = [sys.executable, "-m", "mmlaunch"]
    try:
        done = subprocess.run(
            [*program, "--version"], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(f"the launcher in {run.code} does not start: {error}") from None
    if done.returncode or version not in done.stdout.split()[-1:]:
        last_line = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        what = f"{run.name} is a run of mmlaunch {version}, and the launcher in its snapshot does not run here"
        raise MachineError(f"{what} ({last_line}); {_new(run)}")
    return [*program, *arguments], environment


def _new(run: RunPaths) -> str:
    return f"start a new run from its weights: mmlaunch submit {run.recipe} -s model.init_from={run.root}"
