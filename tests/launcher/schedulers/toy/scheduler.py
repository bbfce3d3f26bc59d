"""A toy: jobs are numbered files in the folder $TOY_QUEUE, each with a process that waits while the queue is closed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmlaunch.errors import MachineError, Problem
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

if TYPE_CHECKING:  # commands that only look at jobs do not need the schema
    from mmlaunch.recipe import Recipe

LOOP = """
trap : USR2
while [ -e "$TOY_QUEUE/closed" ]; do sleep 0.1; done
bash "$0" "$@"
while [ $? -eq 90 ]; do bash "$0" "$@"; done
"""


class Toy:
    """One queue, that can be closed."""

    name = "toy"
    template = "toy.sh.j2"
    start_condition = "starts when the toy queue opens"
    cancel_command = "rm"
    has_arrays = False
    can_hold = False
    excludes_nodes = False

    def is_here(self) -> bool:
        return "TOY_QUEUE" in os.environ

    def misfits(self, resources: Resources) -> list[Problem]:
        return [Problem(("resources", "nodes"), "a toy has one node")] if resources.world > 1 else []

    def missing_here(self, recipe: Recipe) -> list[Problem]:
        return []

    def version(self) -> str | None:
        return "toy 1.0"

    def examine(self, profile: Cluster, runs: Path) -> list[Finding]:
        return [Finding(True, f"a toy queue in {_queue()}", "")]

    def partitions(self) -> list[Partition]:
        return [Partition("toys")]

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
        if after or array or held:
            raise MachineError("a toy knows neither dependencies nor arrays, and holds no single job")
        number = len(list(_queue().glob("*.json"))) + 1
        with run.batch_log.open("ab") as log:
            process = subprocess.Popen(
                ["bash", "-c", LOOP, str(script), str(submission)], stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "TOY_JOB": str(number)},
            )  # fmt: skip
        (_queue() / f"{number}.json").write_text(json.dumps({"pid": process.pid, "run": run.name}))
        return {"job": str(number)}

    def look(self, records: Sequence[JobRecord]) -> list[Job]:
        return [_job(str(record["job"])) for record in records]

    def find(self, run: RunPaths) -> dict[str, Any] | None:
        for path in _queue().glob("*.json"):
            if json.loads(path.read_text())["run"] == run.name and _alive(path.stem):
                return {"job": path.stem}
        return None

    def adopt(self, run: RunPaths, job: str) -> None:
        return

    def energy(self, records: Sequence[JobRecord]) -> float | None:
        return None

    def out_of_reach(self, record: JobRecord) -> str:
        return ""

    def beside(self, record: JobRecord, node: str, terminal: bool) -> list[str]:
        return []

    def warn(self, record: JobRecord) -> None:
        os.killpg(_pid(record["job"]), signal.SIGUSR2)

    def cancel(self, record: JobRecord) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(_pid(record["job"]), signal.SIGKILL)

    def hold(self, record: JobRecord) -> None:
        (_queue() / "closed").touch()

    def release(self, record: JobRecord, in_job: bool = False) -> None:
        (_queue() / "closed").unlink()

    def has_room(self, resources: Resources, beside: Sequence[Resources]) -> bool:
        return not beside

    def batch(self) -> BatchJob:
        return BatchJob(os.environ["TOY_JOB"], "toyland")

    def submitted_from(self) -> str:
        return ""

    def was_cancelled(self, job: BatchJob) -> bool:
        return False

    def keeps_nodes(self, job: BatchJob) -> bool:
        return True

    def delete(self, job: BatchJob, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def removal(self, job: BatchJob) -> Removal:
        return Removal()

    def requeue(self, job: BatchJob, pause: int) -> None:
        time.sleep(pause)

    def resubmit(
        self, run: RunPaths, attempt: int, job: BatchJob, excluded: Sequence[str], pause: int
    ) -> dict[str, Any]:
        raise MachineError("a toy has one node")


def _queue() -> Path:
    return Path(os.environ["TOY_QUEUE"])


def _pid(number: str) -> int:
    return int(json.loads((_queue() / f"{number}.json").read_text())["pid"])


def _alive(number: str) -> bool:
    try:
        return Path(f"/proc/{_pid(number)}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _job(number: str) -> Job:
    if not _alive(number):
        return Job(JobState.OVER, "its toy is broken")
    if (_queue() / "closed").exists():
        return Job(JobState.WAITING, "the toy queue is closed")
    return Job(JobState.LIVE)


SCHEDULER: Scheduler = Toy()
