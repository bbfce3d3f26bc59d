"""`python -m mmlaunch.schedulers.rank FOLDER`: starts a rank through submitit, whose own command it runs.

A container may lack submitit: the snapshot of a run carries it, and what it imports. They stand last on the path, so
that what the container has comes first.
"""

from __future__ import annotations

import runpy
import signal
import sys
from pathlib import Path

from mmlaunch.run.exits import WARNINGS

CARRIED = "carried"
"""The folder beside the package `mmlaunch` in a snapshot."""

if __name__ == "__main__":
    # Until the job listens, a warning waits: submitit's own handlers would requeue the job, or end its first rank.
    signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)
    sys.path.append(str(Path(__file__).resolve().parents[2] / CARRIED))
    runpy.run_module("submitit.core._submit", run_name="__main__", alter_sys=True)
