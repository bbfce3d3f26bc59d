"""The kinds of events in a ledger: a class declares each kind and its fields. A field without a default is required.

The classes are declarations only: an event in memory is a dict, as it is in the file. (They are no dataclasses, since
nothing needs an instance, and to make some twenty of them takes ten milliseconds of every command.)

A writer may add fields of its own: a step carries whatever its objective measures. Every event of a job also carries
`attempt`, and every event carries `time`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

Kind = Literal[
    "submitted", "unconfirmed", "queued", "released", "started", "preflight", "ready", "resumed", "started_up",
    "reference", "generated", "records", "rollout", "step", "evaluated", "stopped_early", "checkpoint", "signal",
    "warning", "excluded",
    "cancelling", "failed", "requeued", "ended",
]  # fmt: skip


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
    activation_checkpointing: Mapping[str, Any] = {}
    submission: int = 0
    """The number of this submission in `owners/`; 0: the run is of a version without it."""
    rows: int | None = None
    """Of a shard: the rows that it goes through."""
    held: bool = False
    """Of a stage: it waits until it is released."""


class Unconfirmed:
    """The scheduler may have accepted the job: it gave no clear answer, and could not be asked."""

    reason: str


class Queued:
    """The scheduler has accepted the job. It names the job by a number, or by a process of a machine."""

    job: str
    excluded: tuple[str, ...] = ()
    """The nodes that this job stays away from."""
    tasks: int = 0
    """The number of tasks of a job array; 0: the job is no array."""
    host: str = ""
    machine: str = ""
    pid: int = 0
    began: int | None = None


class Released:
    """The stages that this one needs are done: it may begin."""

    by: str = ""
    """The stage whose end has released it; empty: a command."""


class Started:
    """An attempt begins on its nodes."""

    attempt: int
    job: str = ""
    nodes: str = ""
    host: str = ""
    """This and the next three fields name the process of the job script."""
    machine: str = ""
    pid: int = 0
    began: int | None = None


class Preflight:
    """The nodes are fit."""

    seconds: float


class Ready:
    """The model is built."""

    world: int
    parameters: Mapping[str, Any] = {}
    """The number of parameters in each part of the model."""
    attention: str = ""
    activation_checkpointing: bool = False


class Resumed:
    """The job continues from a checkpoint."""

    step: int
    tier: str = "disk"
    """disk, or memory: that of the nodes."""


class StartedUp:
    """The first step of an attempt is done."""

    step: int
    phases: Mapping[str, Any]
    """The seconds of rank 0 in each piece of work before it."""


class Reference:
    """The log-probabilities of the reference model are being computed. `new` counts those of this attempt: they are
    progress, as a checkpoint is."""

    done: int
    total: int
    new: int = 0


class Generated:
    """Answers of a rollout are generated and kept. `new` counts the pieces of this attempt: they are progress."""

    step: int
    done: int
    total: int
    new: int = 0


class Records:
    """Records of a shard are written. `new` counts those of this attempt: they are progress."""

    done: int
    total: int
    new: int = 0
    rate: float | None = None
    """Rows per second."""
    failed: Mapping[str, Any] = {}
    """How many rows failed, by reason."""


class Rollout:
    """A rollout is ready to be learnt from."""

    step: int
    metrics: Mapping[str, Any]
    samples: tuple[Mapping[str, Any], ...] = ()
    """Some of its answers: the question, the truth, the answer, its score."""


class Step:
    """A logged step, and whatever the objective measures in it."""

    step: int
    steps: int | None = None
    loss: float | str | None = None
    rate: float | None = None
    """Examples per second."""
    tokens_per_second: float | None = None
    mfu: float | None = None
    memory: float | None = None
    """Bytes of the fullest GPU."""


class Evaluated:
    """The metrics of the evaluation sets at a step."""

    step: int
    metrics: Mapping[str, Any]
    samples: Any = None


class StoppedEarly:
    """The run ends at this step, since its evaluations get no better."""

    step: int
    metric: str = ""
    best: float | None = None
    evaluations: int = 0
    """So many in a row have brought nothing better."""


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


class Signal:
    """A signal or the deadline asks the ranks to leave."""

    name: str
    step: int


class Warned:
    """Something went wrong that does not end the run."""

    what: str
    step: int | None = None
    missing: int = 0
    """How many events before this one could not be written."""


class Excluded:
    """A node is not used again before `until`."""

    node: str
    until: float


class Cancelling:
    """A user asks for the end."""

    by: str = ""
    now: bool = False


class Failed:
    """An attempt has ended badly."""

    attempt: int
    cause: str
    """A name of `restart/causes.py`."""
    evidence: str = ""
    exit_code: int | None = None


class Requeued:
    """The restart policy starts another attempt."""

    attempt: int
    cause: str
    reason: str = ""
    pause: int = 0
    """Seconds before it may begin."""
    by: str = ""
    """The scheduler, if it took the attempt off its nodes and requeued it without asking the policy."""
    in_job: bool = False
    """The next attempt begins in the same job, on the same nodes."""


class Ended:
    """The run is over: done, failed or cancelled."""

    state: str
    reason: str = ""
    cause: str = ""
    exit_code: int = 0
    by: str = ""
    """Who wrote it afterwards, if the job could not: its scheduler's next attempt, or `resume`."""


TYPES: dict[Kind, type] = {
    "submitted": Submitted, "unconfirmed": Unconfirmed, "queued": Queued, "released": Released, "started": Started,
    "preflight": Preflight, "ready": Ready, "resumed": Resumed, "started_up": StartedUp,
    "reference": Reference, "generated": Generated, "records": Records, "rollout": Rollout,
    "step": Step, "evaluated": Evaluated, "stopped_early": StoppedEarly, "checkpoint": Checkpoint,
    "signal": Signal, "warning": Warned, "excluded": Excluded, "cancelling": Cancelling, "failed": Failed,
    "requeued": Requeued, "ended": Ended,
}  # fmt: skip

SYNCED: frozenset[Kind] = frozenset((
    "submitted", "unconfirmed", "queued", "released", "started", "generated", "checkpoint", "failed", "requeued",
    "ended",
))  # fmt: skip
"""Kinds that decisions depend on. The writer waits until such an event is on the disk."""

REQUIRED: dict[str, frozenset[str]] = {
    kind: frozenset(name for name in declared.__annotations__ if name not in vars(declared))
    for kind, declared in TYPES.items()
}


def check(kind: str, fields: Mapping[str, Any]) -> None:
    """Refuse an event that no reader would understand: it is a mistake of whoever writes it."""
    if kind not in REQUIRED:
        raise ValueError(f"no event is called {kind!r}; one of: {', '.join(REQUIRED)}")
    if missing := REQUIRED[kind] - fields.keys():
        raise ValueError(f"an event {kind!r} needs {', '.join(sorted(missing))}")


def _is_number(value: object, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < most


MOST = 1e15
"""No number that a run writes of itself is larger; a loss may be anything."""
_IS: Mapping[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST,
    "float": lambda value: _is_number(value, MOST),
    "float | str": lambda value: _is_number(value, 1e308) or isinstance(value, str),
    "Mapping[str, Any]": lambda value: isinstance(value, Mapping),
    "tuple[Mapping[str, Any], ...]": lambda value: (
        isinstance(value, list) and all(isinstance(i, Mapping) for i in value)
    ),
    "tuple[str, ...]": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "Any": lambda value: True,
}
"""What the declared types of fields take, of what JSON can hold."""


def _test(declared: str) -> Callable[[Any], bool]:
    """Whether a value is what a field is declared as."""
    fits = _IS[declared.removesuffix(" | None")]
    return (lambda value: value is None or fits(value)) if declared.endswith(" | None") else fits


_FIELDS: dict[str, tuple[tuple[str, Callable[[Any], bool]], ...]] = {
    kind: tuple((name, _test(form)) for name, form in {"attempt": "int", **declared.__annotations__}.items())
    for kind, declared in TYPES.items()
}
"""The fields of each kind with their tests: a ledger has a hundred thousand events."""


def believed(event: dict[str, Any]) -> dict[str, Any] | None:
    """An event as it was read, without the values that its kind cannot have; None if it needs one of them.

    A kind that this version does not know passes as it is.
    """
    fields = _FIELDS.get(event["event"], ())
    wrong = {name for name, fits in fields if name in event and not fits(event[name])}
    if not wrong:
        return event
    if wrong & REQUIRED[event["event"]]:
        return None
    return {name: value for name, value in event.items() if name not in wrong}
