"""The error record: what a rank that fails leaves for the restart policy and for the user."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from mmlaunch.run.error_record import ErrorRecord
from mmlaunch.run.paths import AttemptPaths, RunPaths


def place(paths: RunPaths) -> tuple[AttemptPaths, int]:
    """The attempt and the rank of this process."""
    return paths.attempt(int(os.environ.get("MMLAUNCH_ATTEMPT", "1"))), int(os.environ.get("RANK", "0"))


def leave(
    paths: RunPaths,
    step: int | None,
    kind: str,
    message: str,
    *,
    sample: str | None = None,
    traceback: str = "",
    node: str = "",
) -> None:
    """Write the record; where that is impossible, what was printed has to do."""
    attempt, rank = place(paths)
    record = ErrorRecord(rank, kind, message, round(time.time(), 3), step, sample, traceback, node)
    try:
        record.write(attempt)
    except OSError as unwritten:
        say(f"the error record could not be written: {unwritten}")


def say(text: str) -> None:
    """To the rank's log; where that stands on a full disk, the exit code has to say it all."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)
