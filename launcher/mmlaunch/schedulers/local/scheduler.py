"""This machine as a scheduler: a job is a process, starts at once, and restarts by itself."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmlaunch.errors import MachineError, Problem
from mmlaunch.load.cluster import Cluster
from mmlaunch.recipe.resources import Resources
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import process
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

if TYPE_CHECKING:  # commands that only look at jobs do not need the schema
    from mmlaunch.recipe import Recipe

POLL = 0.2
PATIENCE = 60.0


class Local:
    """Job scripts as processes of this machine."""

    name = "local"
    template = "local.sh.j2"
    start_condition = "starts at once"
    cancel_command = "kill"
    excludes_nodes = False
    has_arrays = False
    can_hold = False

    def is_here(self) -> bool:
        return True

    def misfits(self, resources: Resources) -> list[Problem]:
        problems = []
        if resources.nodes != 1:
            what = f"{resources.nodes} nodes, and the local executor has one"
            right = "add -s resources.nodes=1, or choose another --cluster"
            problems.append(Problem(("resources", "nodes"), what, right))
        for key, until in (("begin", resources.begin), ("after", resources.after)):
            if until is not None:
                what = f"the local executor starts a job at once: it cannot wait for {until}"
                problems.append(Problem(("resources", key), what, "remove it, or choose another --cluster"))
        return problems

    def missing_here(self, recipe: Recipe) -> list[Problem]:
        if importlib.util.find_spec("torch") is None:
            right = "pip install 'mmlaunch[train]', or choose another --cluster"
            return [Problem(("resources",), "this machine would run the ranks, and has no torch", right)]
        missing = [
            Problem(place, f"this machine would run it, and has no {package}", f"pip install 'mmlaunch[{extra}]'")
            for place, (package, extra) in recipe.packages.items()
            if importlib.util.find_spec(package) is None
        ]
        wanted, here = recipe.resources.gpus_per_node, len(_gpus())
        if here >= wanted:
            return missing
        what = f"{wanted} GPUs are asked for, this machine has {here}"
        right = f"write gpus_per_node: {here}, or choose another --cluster"
        return [*missing, Problem(("resources", "gpus_per_node"), what, right)]

    def version(self) -> str | None:
        return None

    def examine(self, profile: Cluster, runs: Path) -> list[Finding]:
        return []

    def partitions(self) -> list[Partition]:
        from mmlaunch.schedulers.local import gpus  # only a new site is asked for them

        return [Partition("", True, 1, len(_gpus()), *gpus.kind(), cpus=os.cpu_count() or 1)]

    def most_tasks(self) -> int:
        return 1

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
        if after or held:
            raise MachineError("this machine starts a job at once: it cannot wait for another one")
        if array is not None:
            raise MachineError("this machine has no job arrays; submit each run by itself")
        from mmlaunch.schedulers.local import submit  # submitit takes its time: only whoever submits waits for it

        return submit.start(run, script, ranks, submission)

    def look(self, records: Sequence[JobRecord]) -> list[Job]:
        return [_job(record) for record in records]

    def find(self, run: RunPaths) -> dict[str, Any] | None:
        pid = next(process.running_below(run.attempts), None)
        return {"job": str(pid), **process.identity(pid)} if pid else None

    def adopt(self, run: RunPaths, job: str) -> None:
        return  # a process is never started without its number

    def energy(self, records: Sequence[JobRecord]) -> float | None:
        return None

    def out_of_reach(self, record: JobRecord) -> str:
        return str(record.get("host") or "another machine") if process.here(record) is None else ""

    def beside(self, record: JobRecord, node: str, terminal: bool) -> list[str]:
        if (elsewhere := self.out_of_reach(record)) and node:
            raise MachineError(f"it runs on {elsewhere}: type the same there")
        return []

    def warn(self, record: JobRecord) -> None:
        """Not the whole session: data workers would be ended too, and a rank that loses its workers cannot save."""
        for pid in process.children(int(record["pid"])):
            _send(pid, signal.SIGTERM)

    def cancel(self, record: JobRecord) -> None:
        until = time.monotonic() + PATIENCE
        while members := process.members(record):
            for pid in members:
                _send(pid, signal.SIGKILL)
            if time.monotonic() > until:
                raise MachineError(f"processes {members} do not end: they wait for a disk or a device")
            time.sleep(POLL)

    def hold(self, record: JobRecord) -> None:
        raise MachineError("this machine starts a job at once: there is no queue to hold it in")

    def release(self, record: JobRecord, in_job: bool = False) -> None:
        raise MachineError("this machine holds no jobs")

    def has_room(self, resources: Resources, beside: Sequence[Resources]) -> bool:
        """As many GPUs as are here; without GPUs, as many ranks as there are cores. A job alone always fits."""
        wanted = [resources, *beside]
        gpus = sum(one.gpus_per_node for one in wanted)
        ranks = sum(one.ranks_per_node for one in wanted if not one.gpus_per_node)
        return not beside or (gpus <= len(_gpus()) and ranks <= (os.cpu_count() or 1))

    def batch(self) -> BatchJob:
        number = os.environ.get("SUBMITIT_LOCAL_JOB_ID", "")
        return BatchJob(number, socket.gethostname(), 0, process.identity(os.getppid()))

    def submitted_from(self) -> str:
        return ""

    def was_cancelled(self, job: BatchJob) -> bool:
        return False  # whoever kills a process leaves no word

    def keeps_nodes(self, job: BatchJob) -> bool:
        return True

    def delete(self, job: BatchJob, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def removal(self, job: BatchJob) -> Removal:
        return Removal()

    def requeue(self, job: BatchJob, pause: int) -> None:
        """The job script goes round its loop once more."""
        time.sleep(pause)

    def resubmit(
        self, run: RunPaths, attempt: int, job: BatchJob, excluded: Sequence[str], pause: int
    ) -> dict[str, Any]:
        raise MachineError(f"this machine is the only one: a job cannot stay away from {', '.join(excluded)}")


def _gpus() -> list[Path]:
    return list(Path("/dev").glob("nvidia[0-9]*"))


def _job(record: JobRecord) -> Job:
    try:
        living = process.alive(record)
    except (TypeError, ValueError):  # an event of another program: it names no process
        living = None
    if living is None:
        return Job(JobState.UNKNOWN, f"runs on {record.get('host', 'another machine')}: ask there")
    if not living:
        return Job(JobState.OVER, "its process is gone and left no word: killed, or the machine went down")
    return Job(JobState.LIVE)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError:
        raise MachineError(f"process {pid} belongs to someone else; ask its owner to cancel the run") from None


SCHEDULER: Scheduler = Local()
