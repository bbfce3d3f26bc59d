"""What mmlaunch needs of a scheduler. `slurm/` and `local/` are two; `choose` picks one by the profile's `executor`.

Another scheduler is a folder beside these with a file `scheduler.py` that defines `SCHEDULER`, a template of its job
script, and a cluster profile that names the folder as its `executor`.

The job script does the rest: it exports what the ranks read (MMLAUNCH_LEAD, the seconds before the end at which the
ranks are warned; MMLAUNCH_DEADLINE, the end itself; MMLAUNCH_MEMORY, a folder in the memory of each node that no other
job has; the address of the first rank), calls `python -m mmlaunch.attempt open`, starts the ranks, and hands their exit
code to `python -m mmlaunch.attempt close`. If it begins another attempt in the same job where the answer is 95, it says
so by MMLAUNCH_IN_JOB=1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mmlaunch.errors import MachineError, Problem
from mmlaunch.load.cluster import Cluster
from mmlaunch.recipe.resources import Resources
from mmlaunch.run.paths import RunPaths

if TYPE_CHECKING:  # commands that only look at jobs do not need the schema
    from mmlaunch.recipe import Recipe

JobRecord = Mapping[str, Any]
"""What the ledger keeps of a job: its newest `queued` or `started` event. Its fields come from the scheduler itself."""


class PerhapsSubmitted(MachineError):
    """The scheduler gave no clear answer to a submission, and could not be asked: it may have accepted the job."""


class JobState(str, Enum):
    """What the state of a job means to a run."""

    WAITING = "waiting"
    LIVE = "live"
    OVER = "over"
    STUCK = "stuck"  # only a human can help
    UNKNOWN = "unknown"  # a job that is missing may still be running


@dataclass(frozen=True)
class Job:
    """A job as its scheduler sees it."""

    state: JobState
    reason: str = ""
    """For the user: why it waits, what a human has to do, how it ended, why nothing is known of it."""
    cancelled: bool = False
    """It is over because someone ended it with the scheduler's own command."""


@dataclass(frozen=True)
class BatchJob:
    """The job that this process is part of, as the job script sees it."""

    number: str
    nodes: str
    restarts: int = 0
    """How often the scheduler has put it back into the queue."""
    process: Mapping[str, Any] = field(default_factory=dict)
    """The process of the job script: host, number, start."""


@dataclass(frozen=True)
class Removal:
    """Why the scheduler took a job off its nodes without asking the restart policy."""

    state: str = ""
    """In the words of `restart/causes.py`: NODE_FAIL, BOOT_FAIL, LAUNCH_FAILED; empty: preempted, or unknown."""
    sentence: str = ""


@dataclass(frozen=True)
class Dependency:
    """A job that has to end, or to begin, before another one may begin."""

    job: str
    on: Literal["ok", "end", "start"] = "ok"


@dataclass(frozen=True)
class Array:
    """So many tasks of one job script, each with its own index; at most so many run at once (0: all)."""

    tasks: int
    at_once: int = 0
    first: int = 0
    """How many tasks of the same submission are in arrays before this one: the second argument of the job script."""


@dataclass(frozen=True)
class Finding:
    """One fact of a site, and what follows from it for runs."""

    good: bool
    what: str
    means: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Partition:
    """Nodes that a job may be sent to."""

    name: str
    """Empty where there is no choice."""
    is_default: bool = False
    """Whether a job that names none goes there."""
    nodes: int = 1
    gpus: int = 0
    """Of a node; the most that one has."""
    gpu_type: str = ""
    """As the site calls it; empty where it does not say."""
    gpu_memory: str = ""
    """Of one GPU, as it is sold: 80G; empty where nobody says."""
    cpus: int = 1
    """Of a node; the fewest that one with so many GPUs has."""
    max_time: int | None = None
    """The longest time limit, in seconds."""


class Scheduler(Protocol):
    """Jobs of one kind of scheduler. A method that cannot do what it should raises `MachineError`."""

    name: str
    """What a profile's `executor` calls it: the name of its folder."""
    template: str
    """The file name of its job script's template."""
    start_condition: str
    """When a pending job starts: `starts when Slurm has room`."""
    cancel_command: str
    """By which a user ends a job without mmlaunch."""
    excludes_nodes: bool
    """Whether `resubmit` can keep a job away from nodes."""
    has_arrays: bool
    """Whether one submission may have many tasks; otherwise one job does all of them, one after the other."""
    can_hold: bool
    """Whether a job may be submitted held; otherwise it is submitted when it may begin."""

    # Before a submission

    def is_here(self) -> bool:
        """Whether this machine can submit to it. Then runs go to it, unless the user names another profile."""
        ...

    def misfits(self, resources: Resources) -> list[Problem]:
        """What of a recipe's resources it can never give."""
        ...

    def missing_here(self, recipe: Recipe) -> list[Problem]:
        """What this machine lacks for a recipe, where it is this machine that runs the job."""
        ...

    def version(self) -> str | None:
        """The version of its client programs, if there are any."""
        ...

    def examine(self, profile: Cluster, runs: Path) -> list[Finding]:
        """What its configuration means for runs of this profile in this folder."""
        ...

    def partitions(self) -> list[Partition]:
        """What a job of this user may be sent to; nothing where the scheduler does not say."""
        ...

    def most_tasks(self) -> int:
        """The most tasks of one job array."""
        ...

    # Jobs

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
        """Submit a job script; returns what the ledger keeps of the job. A job is never submitted twice.

        A `held` job waits until it is released.
        The script gets the number of the submission as its argument, whenever the job starts. Raises
        `PerhapsSubmitted` if nobody can say whether the job was accepted.
        """
        ...

    def look(self, records: Sequence[JobRecord]) -> list[Job]:
        """The states of many jobs, in the order of the records, with as few questions as possible."""
        ...

    def find(self, run: RunPaths) -> dict[str, Any] | None:
        """The run's job that waits or runs, found by its name or its script, as the ledger would keep it.

        Raises `MachineError` if the scheduler does not answer.
        """
        ...

    def adopt(self, run: RunPaths, job: str) -> None:
        """Give a job what `submit` prepares for the ranks, if `submit` never learnt the number of the job."""
        ...

    def energy(self, records: Sequence[JobRecord]) -> float | None:
        """The joules that these jobs have taken; None where the site does not count them."""
        ...

    def out_of_reach(self, record: JobRecord) -> str:
        """Where a job has to be cancelled, if not from here; otherwise nothing."""
        ...

    def beside(self, record: JobRecord, node: str, terminal: bool) -> list[str]:
        """The words before a command by which it runs on a node of a running job, beside the ranks; with a `terminal`
        it talks with the user."""
        ...

    def warn(self, record: JobRecord) -> None:
        """Ask the ranks of a running job to save and leave."""
        ...

    def cancel(self, record: JobRecord) -> None:
        """End a job, now. Returns once its ranks are gone, also if it had ended before."""
        ...

    def hold(self, record: JobRecord) -> None:
        """Keep a waiting job from starting."""
        ...

    def release(self, record: JobRecord, in_job: bool = False) -> None:
        """Let a held job start; from inside a job, with patience for a scheduler that is away."""
        ...

    def has_room(self, resources: Resources, beside: Sequence[Resources]) -> bool:
        """Whether a job may begin beside these others. Where jobs queue, always."""
        ...

    # Inside a job

    def batch(self) -> BatchJob:
        """The job around this process."""
        ...

    def submitted_from(self) -> str:
        """The machine that the job around this process was submitted from; empty outside of jobs."""
        ...

    def was_cancelled(self, job: BatchJob) -> bool:
        """Whether someone has ended the job with the scheduler's own command."""
        ...

    def keeps_nodes(self, job: BatchJob) -> bool:
        """Whether the job goes on, and all its nodes are up: another attempt may begin in it."""
        ...

    def delete(self, job: BatchJob, folder: Path) -> None:
        """Delete a folder that each node of the job has for itself; what a node does not answer stays."""
        ...

    def removal(self, job: BatchJob) -> Removal:
        """Why the job was taken off its nodes before it came to run again."""
        ...

    def requeue(self, job: BatchJob, pause: int) -> None:
        """Have the job run again, after so many seconds."""
        ...

    def resubmit(
        self, run: RunPaths, attempt: int, job: BatchJob, excluded: Sequence[str], pause: int
    ) -> dict[str, Any]:
        """Submit the attempt's script as a new job that stays away from some nodes; what the ledger keeps of it."""
        ...
