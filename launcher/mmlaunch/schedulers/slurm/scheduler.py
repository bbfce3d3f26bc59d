"""Slurm, as mmlaunch needs it."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmlaunch.errors import Problem
from mmlaunch.load.cluster import Cluster
from mmlaunch.recipe.resources import Resources
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers.base import (
    Array,
    BatchJob,
    Dependency,
    Finding,
    Job,
    JobRecord,
    JobState,
    Partition,
    Removal,
    Scheduler,
)  # fmt: skip
from mmlaunch.schedulers.slurm import commands, queue
from mmlaunch.schedulers.slurm.commands import SlurmError
from mmlaunch.schedulers.slurm.states import ENDED_WITHOUT_POLICY

if TYPE_CHECKING:  # commands that only look at jobs do not need the schema
    from mmlaunch.recipe import Recipe

_CONFIGURATIONS = (
    "/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf", "/usr/local/etc/slurm.conf",
)  # fmt: skip


class Slurm:
    """Jobs of sbatch."""

    name = "slurm"
    template = "sbatch.sh.j2"
    start_condition = "starts when Slurm has room"
    cancel_command = "scancel"
    excludes_nodes = True
    has_arrays = True
    can_hold = True

    def is_here(self) -> bool:
        """Whether its programs would find a cluster: they may be installed on a machine that is part of none."""
        program = shutil.which("sbatch")
        if program is None:
            return False
        beside = Path(program).resolve().parent.parent / "etc" / "slurm.conf"
        places = [os.environ.get("SLURM_CONF", ""), *_CONFIGURATIONS]
        return beside.exists() or any(place and Path(place).exists() for place in places)

    def misfits(self, resources: Resources) -> list[Problem]:
        return []  # what a partition gives, only the controller knows

    def missing_here(self, recipe: Recipe) -> list[Problem]:
        return []  # the job runs on other machines

    def version(self) -> str | None:
        try:
            return commands.call("sbatch", "--version").partition("\n")[0].strip()
        except SlurmError:
            return None

    def examine(self, profile: Cluster, runs: Path) -> list[Finding]:
        from mmlaunch.schedulers.slurm import site_checks  # only `doctor` needs it

        return site_checks.examine(profile, runs, uses_slurm=profile.executor == self.name)

    def partitions(self) -> list[Partition]:
        from mmlaunch.schedulers.slurm import site_partitions  # only a new site is asked for them

        return site_partitions.partitions()

    def most_tasks(self) -> int:
        """MaxArraySize is the largest index, and one more (slurm.conf(5))."""
        return max(1, int(commands.configuration().get("MaxArraySize", "1001")) - 1)

    def submit(
        self,
        run: RunPaths,
        script: Path,
        ranks: int,
        submission: int = 0,
        after: Sequence[Dependency] = (),
        array: Array | None = None,
        held: bool = False,
    ) -> dict[str, Any]:
        from mmlaunch.schedulers.slurm import submit  # submitit takes its time: only whoever submits waits for it

        return submit.start(run, script, ranks, submission, after, array, held)

    def look(self, records: Sequence[JobRecord]) -> list[Job]:
        jobs = queue.look(str(record["job"]) for record in records if record.get("job"))
        nothing = Job(JobState.UNKNOWN, queue.NO_ANSWER)
        return [jobs.get(str(record.get("job")), nothing) for record in records]

    def find(self, run: RunPaths) -> dict[str, Any] | None:
        job = queue.named(run.name, str(run.root))
        return {"job": job} if job else None

    def adopt(self, run: RunPaths, job: str) -> None:
        from mmlaunch.schedulers.slurm import submit

        submit.adopt(run, job)

    def energy(self, records: Sequence[JobRecord]) -> float | None:
        return queue.energy(str(record["job"]) for record in records if record.get("job"))

    def out_of_reach(self, record: JobRecord) -> str:
        return ""  # every machine of the cluster reaches its controller

    def beside(self, record: JobRecord, node: str, terminal: bool) -> list[str]:
        words = ["srun", f"--jobid={record['job']}", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}"]
        return [*words, "--pty"] if terminal else words

    def warn(self, record: JobRecord) -> None:
        commands.signal_steps(str(record["job"]), "USR2")

    def cancel(self, record: JobRecord) -> None:
        queue.cancel(str(record["job"]))

    def hold(self, record: JobRecord) -> None:
        commands.call("scontrol", "uhold", str(record["job"]))

    def release(self, record: JobRecord, in_job: bool = False) -> None:
        ask = partial(commands.call, "scontrol", "release", str(record["job"]))
        if in_job:
            commands.patiently(ask)
        else:
            ask()

    def has_room(self, resources: Resources, beside: Sequence[Resources]) -> bool:
        return True

    def batch(self) -> BatchJob:
        from mmlaunch.schedulers.process import identity  # ctypes takes its time, and only a job script needs it

        number, restarts = queue.number_of(os.environ), os.environ.get("SLURM_RESTART_COUNT") or "0"
        nodes = os.environ.get("SLURM_JOB_NODELIST", socket.gethostname())
        return BatchJob(number, nodes, int(restarts), identity(os.getppid()))

    def submitted_from(self) -> str:
        return os.environ.get("SLURM_SUBMIT_HOST", "") if os.environ.get("SLURM_JOB_ID") else ""

    def was_cancelled(self, job: BatchJob) -> bool:
        return queue.cancelled(job.number)

    def keeps_nodes(self, job: BatchJob) -> bool:
        return queue.runs_on(job.number, job.nodes)

    def delete(self, job: BatchJob, folder: Path) -> None:
        nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
        once = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=0"]
        with suppress(SlurmError):
            commands.call("srun", *once, "rm", "-rf", "--", str(folder))

    def removal(self, job: BatchJob) -> Removal:
        word = queue.taken_as(job.number, job.restarts)
        return Removal(word, f"Slurm says {word}: {ENDED_WITHOUT_POLICY.get(word, 'it ended')}" if word else "")

    def requeue(self, job: BatchJob, pause: int) -> None:
        commands.requeue(job.number, pause)

    def resubmit(
        self, run: RunPaths, attempt: int, job: BatchJob, excluded: Sequence[str], pause: int
    ) -> dict[str, Any]:
        from mmlaunch.schedulers.slurm import submit

        return submit.resubmit(run, attempt, job.number, excluded, pause)


SCHEDULER: Scheduler = Slurm()
