"""submitit's Slurm executor, whose submission file is our rendered template."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from submitit.core.core import Job
from submitit.core.utils import JobPaths
from submitit.slurm.slurm import SlurmExecutor

from mmlaunch.errors import MachineError
from mmlaunch.run import owner
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers.base import Array, Dependency, PerhapsSubmitted
from mmlaunch.schedulers.entry import Entry
from mmlaunch.schedulers.environment import clean
from mmlaunch.schedulers.slurm.commands import SlurmError, patiently
from mmlaunch.schedulers.slurm.queue import named

FIRST_TASK = "MMLAUNCH_FIRST_TASK"
"""How many tasks of a submission are in arrays before that of this job, in the environment of a job script."""
PATIENCE = 180.0
"""Seconds for sbatch: a busy controller lets its clients wait."""
_NUMBER = re.compile(r"^(\d+)(?:;[\w.-]+)?$", re.MULTILINE)


class _Unclear(Exception):
    """What sbatch did does not say whether Slurm has the job."""


class _Refused(_Unclear):
    """sbatch says that it failed. Slurm may have accepted the job before."""


class TemplateExecutor(SlurmExecutor):
    """Submits the job script, byte for byte."""

    def __init__(
        self, run: RunPaths, script: Path, ranks: int, submission: int, options: Sequence[str] = (), first: int = 0
    ) -> None:
        super().__init__(run.job)
        self.script, self.options = script, options
        self.arguments = [str(submission), *([str(first)] if first else [])]
        self.update_parameters(ntasks_per_node=ranks)  # how many results submitit expects

    def _submit_command(self, command: str) -> Job[Any]:
        number = _sbatch([*self.options, str(self.script), *self.arguments])
        job: Job[Any] = self.job_class(folder=self.folder, job_id=number, tasks=list(range(self._num_tasks())))
        job.paths.folder.mkdir(parents=True, exist_ok=True)
        return job


def start(
    run: RunPaths,
    script: Path,
    ranks: int,
    submission: int = 0,
    after: Sequence[Dependency] = (),
    array: Array | None = None,
    held: bool = False,
) -> dict[str, Any]:
    """Submit; returns what the ledger keeps of the job. A job that was accepted is never submitted twice."""
    try:
        options, first = _options(after, array, held), array.first if array else 0
        executor = TemplateExecutor(run, script, ranks, submission, options, first)
        job = executor.submit(Entry(str(run.root))).job_id
    except _Unclear as unclear:
        job = _accepted(run, unclear)
        adopt(run, job)
    except OSError as error:  # sbatch itself did not run, or a file could not be written before
        raise MachineError(f"sbatch was not started: {error}") from error
    if array is None:
        return {"job": job}
    of_array = JobPaths(run.job, job_id=job).submitted_pickle
    for index in range(array.tasks):  # ranks of a task look for the callable under the task's number
        _copy_callable(run, f"{job}_{index}", of_array)
    return {"job": job, "tasks": array.tasks}


def adopt(run: RunPaths, job: str) -> None:
    """Give the callable to the ranks of a job whose number sbatch did not tell: it waits under a temporary name."""
    _copy_callable(run, job)


def resubmit(run: RunPaths, attempt: int, job: str, excluded: Sequence[str], pause: int) -> dict[str, Any]:
    """From inside a job: submit its script again as a new job that stays away from some nodes."""
    options = [f"--begin=now+{pause}", f"--exclude={','.join(excluded)}"]
    _, is_task, index = job.partition("_")  # a task of an array begins again as an array of its own
    options += [f"--array={index}"] if is_task else []
    arguments = [str(owner.newest(run)), os.environ.get(FIRST_TASK, "0")]
    try:
        number = _sbatch([*options, str(run.attempt(attempt).script), *arguments])
    except _Unclear as error:
        unclear = error
        number = patiently(lambda: _accepted(run, unclear, but=job))
    number = f"{number}_{index}" if is_task else number
    _copy_callable(run, number)
    return {"job": number, "excluded": list(excluded)}


def _sbatch(arguments: Sequence[str]) -> str:
    """The number of the job that sbatch has submitted. Wrappers of a site may print other lines around it."""
    command = ["sbatch", "--parsable", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE, env=clean(os.environ)
        )
    except subprocess.TimeoutExpired:
        raise _Unclear(f"sbatch did not answer within {PATIENCE:.0f} s") from None
    except KeyboardInterrupt:
        raise _Unclear("interrupted while sbatch was running") from None
    numbers = set(_NUMBER.findall(done.stdout))
    if done.returncode == 0 and len(numbers) == 1:
        return str(numbers.pop())
    if done.returncode:
        raise _Refused(done.stderr.strip() or f"sbatch ended with exit code {done.returncode}")
    raise _Unclear(f"sbatch answered {done.stdout.strip()!r} instead of a job number")


def _accepted(run: RunPaths, unclear: _Unclear, but: str = "") -> str:
    """The number of the job that Slurm has accepted after all."""
    try:
        job = named(run.name, str(run.root), but)
    except SlurmError as error:
        if but:  # a job can wait for the answer, and must
            raise
        raise PerhapsSubmitted(f"{unclear}; and Slurm does not say whether it has the job ({error})") from None
    if job is not None:
        return job
    if isinstance(unclear, _Refused):
        raise MachineError(f"sbatch did not take the job: {unclear}")
    raise PerhapsSubmitted(f"{unclear}; and no job of this run is in the queue yet")


def _options(after: Sequence[Dependency], array: Array | None, held: bool) -> list[str]:
    """The options of sbatch that differ between submissions of one script."""
    words = {"ok": "afterok", "end": "afterany", "start": "after"}
    options = [f"--dependency={','.join(f'{words[one.on]}:{one.job}' for one in after)}"] if after else []
    options += ["--hold"] if held else []
    if array is not None:
        at_once = f"%{array.at_once}" if array.at_once else ""
        options.append(f"--array=0-{array.tasks - 1}{at_once}")
    return options


def _copy_callable(run: RunPaths, job: str, source: Path | None = None) -> None:
    """Ranks look for the callable under the number of their job. All callables of a run are the same: `source` is one,
    if it is there; looking for one among those of thousands of tasks takes long."""
    path = JobPaths(run.job, job_id=job).submitted_pickle
    with suppress(FileNotFoundError):  # it was given its name in this moment
        if path.exists():
            return
        if source is None or not source.exists():
            source = max(run.job.glob("*.pkl"), key=lambda other: other.stat().st_mtime)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        shutil.copyfile(source, aside)
        aside.replace(path)
