"""The process boundary of a rank: from a run directory to a result, or to an error record and an exit code."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmjobs.rank import error_record, signals
from mmjobs.rank.disk import DiskFull
from mmjobs.rank.position import Position
from mmjobs.rank.watchdog import Watchdog
from mmlaunch.errors import BadInput
from mmlaunch.recipe import resolved
from mmlaunch.run import plugins
from mmlaunch.run.exits import JobExit
from mmlaunch.run.owner import NotTheOwner
from mmlaunch.run.paths import RunPaths

_LEAVING = 60.0
"""Seconds between the last act of a rank and its end, at most."""


def run(run_dir: str) -> dict[str, Any]:
    """Run this rank's part of one attempt. Returns when the run is finished; every other end is a `SystemExit`."""
    stop = signals.listen()
    paths, position = RunPaths(Path(run_dir)), Position()
    os.environ[plugins.RUN] = run_dir
    code: int | None = None
    try:
        with Watchdog(paths, position) as watch:
            with _uncollected():
                from mmjobs.rank.boundary import RequeueRequested
                from mmjobs.rank.preflight import Unfit  # after the handlers: torch takes seconds

            try:
                result = _task(paths, stop, position, watch)
                code = int(JobExit.DONE)
                return result
            except RequeueRequested:
                code = int(JobExit.AGAIN)
            except Unfit as reason:  # whose record is written
                error_record.say(f"the preflight ends this attempt: {reason}")
                code = int(JobExit.UNFIT_NODE)
    except BadInput as error:
        code = _failed(paths, position, error, JobExit.BAD_INPUT)
    except (DiskFull, NotTheOwner) as error:
        code = _failed(paths, position, error, JobExit.STOP)
    except Exception as error:  # noqa: BLE001  the boundary: whatever it was is recorded, and the process ends
        code = _failed(paths, position, error, 1)
    finally:
        signals.ignore_signals()
        _leave_soon(code)
    _flush()
    raise SystemExit(code)


def _task(paths: RunPaths, stop: signals.StopRequest, position: Position, watch: Watchdog) -> dict[str, Any]:
    """Run the task that the method of the recipe names: a file in `mmjobs/tasks`."""
    recipe = resolved.read(paths.resolved)
    with _uncollected():
        task = importlib.import_module(f"mmjobs.tasks.{recipe.objective.TASK}")
    result: dict[str, Any] = task.run(recipe, paths, stop, position, watch)
    return result


def _leave_soon(code: int | None) -> None:
    """End this process after a while, whatever libraries and threads of theirs still wait for: nobody watches over it
    any more, and its GPU would be held until the time limit."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise what it sees of the workers' end
    for worker in multiprocessing.active_children():
        worker.kill()
    if code is not None:
        clock = threading.Timer(_LEAVING, os._exit, (code,))
        clock.daemon = True
        clock.start()


@contextmanager
def _uncollected() -> Iterator[None]:
    """What is imported in this context stays as long as the process, and the garbage collector never looks at it: its
    search through all modules is a third of a rank's time before the first step and after the last."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _failed(paths: RunPaths, position: Position, error: Exception, code: int) -> int:
    """Leave the record that tells the restart policy and the user what happened on this rank."""
    if code == 1:
        error_record.say(traceback.format_exc())
    else:  # not a bug: one sentence says it all
        error_record.say(f"{type(error).__name__}: {error}")
    sample = getattr(error, "sample", None) or position.sample
    error_record.leave(
        paths, position.step, type(error).__name__, str(error), sample=sample, traceback=traceback.format_exc()
    )
    return code


def _flush() -> None:
    """Bring out what was printed. Where the log's disk is full, drop it: it would change the exit code later."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
