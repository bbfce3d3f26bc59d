"""The process boundary of a rank: from a run directory to a result, or to an error record and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from mmjobs.rank import error_record, signals
from mmjobs.rank.disk import DiskFull
from mmjobs.rank.position import Position
from mmjobs.rank.watchdog import Watchdog
from mmlaunch.errors import BadInput
from mmlaunch.run.exits import JobExit
from mmlaunch.run.paths import RunPaths


def run(run_dir: str) -> dict[str, Any]:
    """Run this rank's part of one attempt. Returns when the run is finished; every other end is a `SystemExit`."""
    stop = signals.listen()
    paths, where = RunPaths(Path(run_dir)), Position()
    try:
        with Watchdog(paths, where) as watch:
            from mmjobs.rank.boundary import RequeueRequested
            from mmjobs.rank.preflight import Unfit  # after the handlers: torch takes seconds
            from mmjobs.train.setup import train

            try:
                return train(paths, stop, where, watch)
            except RequeueRequested:
                code = int(JobExit.AGAIN)
            except Unfit as reason:  # whose record is written
                error_record.say(f"the preflight ends this attempt: {reason}")
                code = int(JobExit.UNFIT_NODE)
    except BadInput as error:
        code = _failed(paths, where, error, JobExit.BAD_INPUT)
    except DiskFull as error:
        code = _failed(paths, where, error, JobExit.STOP)
    except Exception as error:  # noqa: BLE001  the boundary: whatever it was is recorded, and the process ends
        code = _failed(paths, where, error, 1)
    finally:
        signals.ignore_signals()
    _flush()
    raise SystemExit(code)


def _failed(paths: RunPaths, where: Position, error: Exception, code: int) -> int:
    """Leave the record that tells the restart policy and the user what happened on this rank."""
    if code == 1:
        error_record.say(traceback.format_exc())
    else:  # not a bug: one sentence says it all
        error_record.say(f"{type(error).__name__}: {error}")
    sample = getattr(error, "sample", None) or where.sample
    error_record.leave(
        paths, where.step, type(error).__name__, str(error), sample=sample, traceback=traceback.format_exc()
    )
    return code


def _flush() -> None:
    """Bring out what was printed. Where the log's disk is full, drop it: it would change the exit code later."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
