"""`resources` and `restarts`: what a run needs, and how often it may be restarted."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import Field

from mmlaunch.recipe.begin import Begin
from mmlaunch.recipe.scalars import Count, Duration, Line, MemorySize, Word, Words
from mmlaunch.recipe.section import Mistake, Section, mistake, rule


class Resources(Section):
    """`resources`"""

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "gpus": "gpus_per_node", "num_nodes": "nodes", "ntasks_per_node": "tasks_per_node", "mem": "memory",
        "cpus_per_task": "cpus_per_rank", "cpus": "cpus_per_rank", "walltime": "time", "timeout": "time",
        "queue": "partition", "time_limit": "time", "start": "begin", "start_time": "begin", "dependency": "after",
        "partitions": "partition", "tasks": "tasks_per_node", "ranks": "tasks_per_node",
    }  # fmt: skip

    nodes: Count = 1
    """How many machines."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 8
    """0: the run uses CPUs only."""
    tasks_per_node: Count | None = None
    """Ranks per node: one for each GPU; without GPUs, as many as you like (default 1)."""
    cpus_per_rank: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Left out: the profile's value."""
    memory: MemorySize | None = None
    """Memory of a node. Left out: what the profile says, otherwise what the scheduler gives."""
    time: Duration = 86400
    """The time limit of an attempt: 24:00:00, 30m."""
    partition: Annotated[Words, Field(examples=["[a100, h100]"])] | None = None
    """Partition, account and qos of this run, instead of the profile's. Of several, the one that is free first."""
    account: Word | None = None
    """The account that is charged."""
    qos: Word | None = None
    """The quality of service."""
    begin: Begin | None = None
    """The job starts no earlier than this: 22:00, 2026-12-01T22:00, or now+2h after the submission."""
    after: Annotated[Line, Field(examples=["sft-llama3-8b"])] | None = None
    """The job starts when this run or job has ended, however it ended: a run's name, or the number of a job."""

    @rule
    def _one_rank_a_gpu(self) -> Iterator[Mistake]:
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            what = f"{self.tasks_per_node} ranks cannot share {self.gpus_per_node} GPUs: one rank drives one GPU"
            right = f"write {self.gpus_per_node}, or remove the line"
            yield ("tasks_per_node",), self.tasks_per_node, mistake(what, right)

    @property
    def ranks_per_node(self) -> int:
        return self.gpus_per_node or self.tasks_per_node or 1

    @property
    def world(self) -> int:
        """The number of ranks."""
        return self.nodes * self.ranks_per_node

    def describe_world(self) -> str:
        """`32 ranks (4 nodes x 8 GPUs)`, `2 ranks (2 GPUs)`."""
        if self.nodes == 1 and not self.gpus_per_node:
            return f"{self.world} rank{'s' if self.world > 1 else ''}"
        unit = "GPUs" if self.gpus_per_node else "ranks"
        each = f"{self.ranks_per_node} {unit if self.ranks_per_node > 1 else unit[:-1]}"
        nodes = f"{self.nodes} nodes x " if self.nodes > 1 else ""
        return f"{self.world} rank{'s' if self.world > 1 else ''} ({nodes}{each})"


def _budget(value: int, text: str) -> Any:
    return Field(default=value, ge=0, le=10**6, description=text)


class Restarts(Section):
    """`restarts`: budgets by cause. Time limits and preemption cost nothing while the run advances."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {"max_restarts": "crash", "retries": "crash", "node_fail": "node"}

    crash: int = _budget(2, "A rank ended with an error that might not come again.")
    node: int = _budget(10, "A node failed or was found unfit.")
    hang: int = _budget(3, "No rank made progress for too long.")
    no_progress: Count = 3
    """So many restarts in a row without a new checkpoint end the run, whatever their causes."""
    backoff: Duration = 30
    """The pause before the second restart for the same cause; it doubles each time, up to ten minutes."""
    in_job: bool = True
    """A rank that crashed or hung is restarted in the same job, without the queue, while its nodes are up and the
    attempt has saved something new since the restart before."""
