"""submitit's Slurm executor, whose submission file is our rendered template."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.core.utils import JobPaths
from submitit.slurm.slurm import SlurmExecutor

from mmlaunch.errors import MachineError
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers.base import Array, Dependency
from mmlaunch.schedulers.entry import Entry
from mmlaunch.schedulers.environment import clean
from mmlaunch.schedulers.slurm.queue import named


class TemplateExecutor(SlurmExecutor):
    """Submits the job script, byte for byte."""

    def __init__(self, run: RunPaths, script: Path, ranks: int, options: Sequence[str] = ()) -> None:
        super().__init__(run.job)
        self.script, self.options = script, options
        self.update_parameters(ntasks_per_node=ranks)  # how many results submitit expects

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self.script.read_text(encoding="utf-8")

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return ["sbatch", "--parsable", *self.options, str(submission_file_path)]

    @staticmethod
    def _get_job_id_from_submission_command(string: bytes | str) -> str:
        """`--parsable` prints `id` or `id;cluster`; site wrappers may print lines before it."""
        text = string.decode() if isinstance(string, bytes) else string
        number = text.strip().splitlines()[-1].partition(";")[0] if text.strip() else ""
        if not number.isdigit():
            raise MachineError(f"sbatch answered {text.strip()!r} instead of a job number")
        return number


def start(
    run: RunPaths, script: Path, ranks: int, after: Sequence[Dependency] = (), array: Array | None = None
) -> dict[str, Any]:
    """Submit; returns what the ledger keeps of the job. A job that was accepted is never submitted twice."""
    try:
        executor = TemplateExecutor(run, script, ranks, _options(after, array))
        job = executor.submit(Entry(str(run.root))).job_id
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        accepted = named(run.name, str(run.root))
        if accepted is None:
            raise MachineError(f"sbatch did not take the job: {error}") from error
        job = accepted
        # sbatch gave up after Slurm had accepted the job: its callable still waits under a temporary name.
        callable_file = max(run.job.glob("*.pkl"), key=lambda path: path.stat().st_mtime)
        callable_file.rename(JobPaths(run.job, job_id=job).submitted_pickle)
    if array is None:
        return {"job": job}
    for index in range(array.tasks):  # ranks of a task look for the callable under the task's number
        _copy_callable(run, job, f"{job}_{index}")
    return {"job": job, "tasks": array.tasks}


def _options(after: Sequence[Dependency], array: Array | None) -> list[str]:
    """The options of sbatch that differ between submissions of one script."""
    words = {"ok": "afterok", "end": "afterany", "start": "after"}
    options = [f"--dependency={','.join(f'{words[one.on]}:{one.job}' for one in after)}"] if after else []
    if array is not None:
        at_once = f"%{array.at_once}" if array.at_once else ""
        options.append(f"--array=0-{array.tasks - 1}{at_once}")
    return options


def _copy_callable(run: RunPaths, job: str, other: str) -> None:
    old, new = (JobPaths(run.job, job_id=one).submitted_pickle for one in (job, other))
    shutil.copyfile(old, new)


def resubmit(run: RunPaths, attempt: int, job: str, excluded: Sequence[str], pause: int) -> dict[str, Any]:
    """From inside a job: submit its script again as a new job that stays away from some nodes."""
    options = ["--parsable", f"--begin=now+{pause}", f"--exclude={','.join(excluded)}"]
    command = ["sbatch", *options, str(run.attempt(attempt).script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean(os.environ))
    if done.returncode:
        raise MachineError(f"sbatch did not take the job again: {done.stderr.strip()}")
    number = TemplateExecutor._get_job_id_from_submission_command(done.stdout)
    _copy_callable(run, job, number)  # ranks of the new job look for the callable under its number
    return {"job": number, "excluded": list(excluded)}
