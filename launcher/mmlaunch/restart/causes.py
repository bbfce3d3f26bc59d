"""The table of the causes for which an attempt ends: what shows each cause, and what follows from it.

To add a cause, add a row. If several rows match a log, the first one wins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mmlaunch.run.exits import TIMED_OUT, JobExit

Budget = Literal["crash", "node", "hang", "free", "final"]
"""The field of the recipe's `restarts` that pays for a restart; `free` costs nothing while the run advances."""

LOGS_AND_RESUME = "mmlaunch logs {run} --attempt {attempt}    then mmlaunch resume {run}"

# The causes that the policy names itself. It gets to all others by their evidence.
DONE, CANCELLED, SAVED, TIME_LIMIT = "done", "cancelled", "saved", "time limit"
PREEMPTED, HANG, CRASH = "preempted", "hang", "crash"


@dataclass(frozen=True)
class Cause:
    """One row: what shows the cause, what it costs, and what the user reads."""

    name: str
    budget: Budget
    why: str = "It failed"
    """The first sentence of `mmlaunch why`."""
    is_fault: bool = True
    """Whether an ending of this cause is a failure, with an event of its own."""
    final: str = ""
    """Why there is no restart, if there never is one."""
    next: str = LOGS_AND_RESUME
    """What to type next; {run}, {attempt}, {stacks} and {double} (twice the nodes) are filled in."""
    exit_codes: tuple[int, ...] = ()
    error_types: tuple[str, ...] = ()
    """The types of a rank's error record."""
    scheduler_states: tuple[str, ...] = ()
    """How a job that its scheduler took away was ended; the words are those of sacct(1)."""
    log_pattern: re.Pattern[str] | None = None
    """What logs hold when this is the cause: those of ranks, NCCL, the kernel or the scheduler."""


TABLE: tuple[Cause, ...] = (
    Cause(
        "out of memory",
        budget="final",
        why="Out of memory",
        final="it would fail again: the step does not fit into memory",
        next="mmlaunch resume {run} -s batch.micro=HALF    or more GPUs: -s resources.nodes={double}",
        error_types=("OutOfMemoryError", "MemoryError"),
        log_pattern=re.compile(
            r"CUDA out of memory|torch\.OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|"
            r"DefaultCPUAllocator: can't allocate|oom.kill|OOM Killed|Out of memory: Kill|: Out Of Memory$|"
            r"[Ee]xceeded (?:job |step )?memory limit",
            re.MULTILINE,
        ),
    ),
    Cause(
        "node",
        budget="node",
        why="A node is unfit",
        exit_codes=(JobExit.UNFIT_NODE,),
        error_types=("UnfitNode",),
        scheduler_states=("NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED"),
        log_pattern=re.compile(
            r"NVRM: Xid|\bXid \(PCI|[Uu]ncorrectable ECC|double.bit ECC|NVLink error|fallen off the bus|"
            r"Node failure on|CUDA error: (?:unspecified launch failure|unknown error)|No CUDA GPUs are available|"
            r"CUDA-capable device\(s\) is/are busy"
        ),
    ),
    Cause(
        HANG,
        budget="hang",
        why="No rank made progress any more",
        next="the stacks are in {stacks}; then mmlaunch resume {run}",
        exit_codes=(JobExit.HANG,),
        error_types=("Hang",),
        log_pattern=re.compile(
            r"Watchdog caught collective operation timeout|NCCL.* (?:timed out|timeout)", re.IGNORECASE
        ),
    ),
    Cause(
        "disk full",
        budget="final",
        why="The disk is full",
        final="it would fail again: make room, then resume it",
        next="make room, then mmlaunch resume {run}",
        error_types=("DiskFull",),
        log_pattern=re.compile(r"No space left on device|Disk quota exceeded"),
    ),
    Cause(
        "import",
        budget="final",
        why="The code could not be imported",
        final="it would fail again: the code cannot be imported",
        next="mmlaunch logs {run} --attempt {attempt}, mend the installation, then mmlaunch resume {run}",
        error_types=("ImportError", "ModuleNotFoundError", "SyntaxError"),
    ),
    Cause(
        "bad input",
        budget="final",
        why="The recipe or the data are wrong",
        final="it would fail again: the recipe or the data are wrong",
        next="mend the recipe or the data, then mmlaunch submit; or mmlaunch resume {run} -s PATH=VALUE",
        exit_codes=(JobExit.BAD_INPUT,),
        error_types=("BadInput",),
    ),
    Cause(
        "stop",
        budget="final",
        why="The job asked not to be restarted",
        final="the job asked not to be restarted",
        exit_codes=(JobExit.STOP,),
    ),
    Cause(CRASH, budget="crash", why="A rank failed"),
    Cause(
        SAVED,
        budget="free",
        why="It was told to stop and had saved, but got nowhere any more",
        is_fault=False,
        exit_codes=(JobExit.AGAIN,),
    ),
    Cause(
        TIME_LIMIT,
        budget="free",
        why="The time limit came before it could save",
        is_fault=False,
        next="mmlaunch resume {run} -s resources.time=LONGER, or a longer lead in the cluster profile",
        exit_codes=(TIMED_OUT,),
    ),
    Cause(
        PREEMPTED,
        budget="free",
        why="It was taken off its nodes again and again",
        is_fault=False,
    ),
    Cause(DONE, budget="final", is_fault=False, final="the run is complete", exit_codes=(JobExit.DONE,)),
    Cause(CANCELLED, budget="final", is_fault=False, final="cancelled by a user"),
)


def named(name: str) -> Cause:
    """The row of a cause. A ledger of another version may name one that is not in the table."""
    return next((cause for cause in TABLE if cause.name == name), Cause(name, budget="final"))


def of_exit_code(code: int) -> Cause | None:
    """The cause that an exit code stands for, if it has a meaning of its own."""
    return next((cause for cause in TABLE if code in cause.exit_codes), None)


def of_error_type(name: str) -> Cause | None:
    """The cause that the type of an error record stands for."""
    return next((cause for cause in TABLE if name in cause.error_types), None)


def of_scheduler_state(state: str) -> Cause | None:
    """The cause that a scheduler's word for the end of a job stands for."""
    return next((cause for cause in TABLE if state in cause.scheduler_states), None)


def with_log_patterns() -> list[tuple[str, re.Pattern[str]]]:
    """The name and the pattern of every cause that logs can show, in the order in which they are tried."""
    return [(cause.name, cause.log_pattern) for cause in TABLE if cause.log_pattern is not None]
