"""The kinds of events in a ledger: one frozen dataclass for each; a field without a default has to be written.

A writer may add fields of its own: a step carries whatever its objective measures. Every event of a job also carries
`attempt`, and every event carries `time`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal[
    "submitted", "queued", "started", "preflight", "ready", "resumed", "reference", "step", "evaluated", "checkpoint",
    "signal", "warning", "excluded", "cancelling", "failed", "requeued", "ended",
]  # fmt: skip


@dataclass(frozen=True)
class Submitted:
    """The launcher has made or resumed the run; what the run asks for."""

    executor: str
    """The scheduler that runs it."""
    name: str = ""
    method: str = ""
    cluster: str = ""
    nodes: int = 1
    ranks: int = 1
    steps: int | None = None
    """None: the number is known only once the data are read."""
    activation_checkpointing: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Queued:
    """The scheduler has accepted the job. It names the job by a number, or by a process of a machine."""

    job: str
    excluded: tuple[str, ...] = ()
    """The nodes that this job stays away from."""
    tasks: int = 0
    """The number of tasks of a job array; 0: the job is no array."""
    host: str = ""
    pid: int = 0
    began: int | None = None


@dataclass(frozen=True)
class Started:
    """An attempt begins on its nodes."""

    attempt: int
    job: str = ""
    nodes: str = ""
    host: str = ""
    """This and the next two fields name the process of the job script."""
    pid: int = 0
    began: int | None = None


@dataclass(frozen=True)
class Preflight:
    """The nodes are fit."""

    seconds: float


@dataclass(frozen=True)
class Ready:
    """The model is built."""

    world: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The number of parameters in each part of the model."""
    attention: str = ""
    activation_checkpointing: bool = False


@dataclass(frozen=True)
class Resumed:
    """The job continues from a checkpoint."""

    step: int


@dataclass(frozen=True)
class Reference:
    """The log-probabilities of the reference model are being computed. `new` counts those of this attempt: they are
    progress, as a checkpoint is."""

    done: int
    total: int
    new: int = 0


@dataclass(frozen=True)
class Step:
    """A logged step, and whatever the objective measures in it."""

    step: int
    steps: int | None = None
    loss: float | str | None = None
    rate: float | None = None
    """Examples per second."""


@dataclass(frozen=True)
class Evaluated:
    """The metrics of the evaluation sets at a step."""

    step: int
    metrics: Mapping[str, Any]
    samples: Any = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint is whole, or (with `rejected`) an existing one is not valid."""

    step: int | None = None
    seconds: float = 0.0
    """From the beginning of the save until the checkpoint is whole."""
    stall: float = 0.0
    """Seconds without training."""
    bytes: int = 0
    rejected: str = ""
    """Why an existing one is not used."""


@dataclass(frozen=True)
class Signal:
    """A signal or the deadline asks the ranks to leave."""

    name: str
    step: int


@dataclass(frozen=True)
class Warning:
    """Something went wrong that does not end the run."""

    what: str
    step: int | None = None


@dataclass(frozen=True)
class Excluded:
    """A node is not used again before `until`."""

    node: str
    until: float


@dataclass(frozen=True)
class Cancelling:
    """A user asks for the end."""

    by: str = ""
    now: bool = False


@dataclass(frozen=True)
class Failed:
    """An attempt has ended badly."""

    attempt: int
    cause: str
    """A name of `restart/causes.py`."""
    evidence: str = ""
    exit_code: int | None = None


@dataclass(frozen=True)
class Requeued:
    """The restart policy starts another attempt."""

    attempt: int
    cause: str
    reason: str = ""
    pause: int = 0
    """Seconds before it may begin."""
    by: str = ""
    """The scheduler, if it took the attempt off its nodes and requeued it without asking the policy."""


@dataclass(frozen=True)
class Ended:
    """The run is over: done, failed or cancelled."""

    state: str
    reason: str = ""
    cause: str = ""
    exit_code: int = 0
    by: str = ""


TYPES: dict[Kind, type] = {
    "submitted": Submitted, "queued": Queued, "started": Started, "preflight": Preflight, "ready": Ready,
    "resumed": Resumed, "reference": Reference, "step": Step, "evaluated": Evaluated, "checkpoint": Checkpoint,
    "signal": Signal, "warning": Warning, "excluded": Excluded, "cancelling": Cancelling, "failed": Failed,
    "requeued": Requeued, "ended": Ended,
}  # fmt: skip

SYNCED: frozenset[Kind] = frozenset({"submitted", "queued", "started", "checkpoint", "failed", "requeued", "ended"})
"""Kinds that decisions depend on. The writer waits until such an event is on the disk."""

REQUIRED: dict[str, frozenset[str]] = {
    kind: frozenset(
        one.name
        for one in dataclasses.fields(declared)
        if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    )
    for kind, declared in TYPES.items()
}


def check(kind: str, fields: Mapping[str, Any]) -> None:
    """Refuse an event that no reader would understand: it is a mistake of whoever writes it."""
    if kind not in REQUIRED:
        raise ValueError(f"no event is called {kind!r}; one of: {', '.join(REQUIRED)}")
    if missing := REQUIRED[kind] - fields.keys():
        raise ValueError(f"an event {kind!r} needs {', '.join(sorted(missing))}")
