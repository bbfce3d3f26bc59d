"""submitit's Slurm executor, whose submission file is our rendered template."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from submitit.core.utils import JobPaths
from submitit.slurm.slurm import SlurmExecutor

from mmlaunch.errors import MachineError
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers.entry import Entry
from mmlaunch.schedulers.environment import clean
from mmlaunch.schedulers.slurm.queue import named


class TemplateExecutor(SlurmExecutor):
    """Submits the job script, byte for byte."""

    def __init__(self, run: RunPaths, script: Path, ranks: int) -> None:
        super().__init__(run.job)
        self.script = script
        self.update_parameters(ntasks_per_node=ranks)  # how many results submitit expects

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self.script.read_text(encoding="utf-8")

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return ["sbatch", "--parsable", str(submission_file_path)]

    @staticmethod
    def _get_job_id_from_submission_command(string: bytes | str) -> str:
        """`--parsable` prints `id` or `id;cluster`; site wrappers may print lines before it."""
        text = string.decode() if isinstance(string, bytes) else string
        number = text.strip().splitlines()[-1].partition(";")[0] if text.strip() else ""
        if not number.isdigit():
            raise MachineError(f"sbatch answered {text.strip()!r} instead of a job number")
        return number


def start(run: RunPaths, script: Path, ranks: int) -> dict[str, Any]:
    """Submit; returns what the ledger keeps of the job. A job that was accepted is never submitted twice."""
    try:
        return {"job": TemplateExecutor(run, script, ranks).submit(Entry(str(run.root))).job_id}
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        job = named(run.name, str(run.root))
        if job is None:
            raise MachineError(f"sbatch did not take the job: {error}") from error
    # sbatch gave up after Slurm had accepted the job: its callable still waits under a temporary name.
    callable_of = max(run.job.glob("*.pkl"), key=lambda path: path.stat().st_mtime)
    callable_of.rename(JobPaths(run.job, job_id=job).submitted_pickle)
    return {"job": job}


def resubmit(run: RunPaths, attempt: int, job: str, excluded: list[str], pause: int) -> dict[str, Any]:
    """From inside a job: submit its script again as a new job that stays away from some nodes."""
    options = ["--parsable", f"--begin=now+{pause}", f"--exclude={','.join(excluded)}"]
    command = ["sbatch", *options, str(run.attempt(attempt).script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean(os.environ))
    if done.returncode:
        raise MachineError(f"sbatch did not take the job again: {done.stderr.strip()}")
    number = TemplateExecutor._get_job_id_from_submission_command(done.stdout)
    old, new = (JobPaths(run.job, job_id=one).submitted_pickle for one in (job, number))
    shutil.copyfile(old, new)  # ranks of the new job look for the callable under its number
    return {"job": number, "excluded": excluded}
