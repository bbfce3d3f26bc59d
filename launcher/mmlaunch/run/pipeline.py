"""Pipelines and sweeps: what their files say of the stages, and which stages are done.

A stage is a run directory of its own. Its pipeline's directory holds the definition, which never changes, and what a
command has noted; what the pipeline is doing is derived from its stages. A sweep is a pipeline whose stages, its
points, need nothing of each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mmlaunch.errors import BadInput
from mmlaunch.run import ledger, shards
from mmlaunch.run.files import READ_ONLY, publish
from mmlaunch.run.paths import RunPaths

Kind = Literal["pipeline", "sweep"]


@dataclass(frozen=True)
class Stage:
    """A stage as its pipeline lists it."""

    name: str
    run: str
    """Its run directory."""
    needs: tuple[str, ...] = ()
    reused: bool = False
    """Whether it was done before this pipeline was submitted."""
    values: tuple[str, ...] = ()
    """Of a point of a sweep: what is special of it, as overrides of the recipe."""

    @property
    def paths(self) -> RunPaths:
        return RunPaths(Path(self.run))


@dataclass(frozen=True)
class Definition:
    """All stages, each behind those that it needs."""

    kind: Kind
    stages: tuple[Stage, ...]
    rungs: tuple[int, ...] = ()
    """Of a sweep by successive halving: the steps after which only the best points go on."""
    keep: int = 1
    """One in so many goes on."""

    @property
    def member(self) -> str:
        """What one of them is called."""
        return "point" if self.kind == "sweep" else "stage"

    def named(self, name: str) -> Stage | None:
        return next((stage for stage in self.stages if stage.name == name), None)


@dataclass(frozen=True)
class Reference:
    """A field of a stage's recipe that names what another stage makes."""

    place: tuple[str | int, ...]
    stage: str
    file: str = ""
    """The file in that stage's run directory; empty: its newest checkpoint."""


@dataclass(frozen=True)
class Need:
    """A stage that has to be done before another one begins."""

    run: str
    recipe: str
    """The digest of its recipe, as the pipeline was submitted with it."""

    @property
    def paths(self) -> RunPaths:
        return RunPaths(Path(self.run))


@dataclass(frozen=True)
class Membership:
    """What a run that is a stage knows of its pipeline."""

    pipeline: str
    name: str
    key: str
    """The same for stages of the same content: what they start from, their data, their recipe."""
    needs: dict[str, Need]
    references: tuple[Reference, ...] = ()


def is_pipeline(run: RunPaths) -> bool:
    return run.pipeline.is_file()


def write(run: RunPaths, definition: Definition) -> None:
    publish(run.pipeline, json.dumps(asdict(definition), indent=1) + "\n", READ_ONLY)


def read(run: RunPaths) -> Definition:
    """The definition of a pipeline; raises `BadInput` where it was damaged."""
    with _understood(run.pipeline) as kept:
        stages = tuple(
            Stage(**{**stage, "needs": tuple(stage["needs"]), "values": tuple(stage["values"])})
            for stage in kept["stages"]
        )
        return Definition(kept["kind"], stages, tuple(kept.get("rungs", ())), int(kept.get("keep", 1)))


def write_membership(run: RunPaths, membership: Membership) -> None:
    publish(run.stage, json.dumps(asdict(membership), indent=1) + "\n", READ_ONLY)


def membership(run: RunPaths) -> Membership | None:
    """The pipeline that a run is a stage of, and its place there; a shard has the place of its task."""
    run = shards.task_of(run) or run
    if not run.stage.is_file():
        return None
    with _understood(run.stage) as kept:
        needs = {name: Need(**need) for name, need in kept.pop("needs").items()}
        references = tuple(Reference(tuple(one["place"]), one["stage"], one["file"]) for one in kept.pop("references"))
        return Membership(**kept, needs=needs, references=references)


@contextmanager
def _understood(path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: cannot be understood ({error}); it was written at submission") from None


def digest(run: RunPaths) -> str:
    """The digest of a run's recipe; empty where there is none."""
    try:
        return hashlib.sha256(run.resolved.read_bytes()).hexdigest()
    except OSError:
        return ""


def is_submitted(run: RunPaths) -> bool:
    """Whether a pipeline was submitted to its last stage: before that, none of them may begin."""
    return ledger.read_ends(run.events).last("submitted") is not None


def waits(run: RunPaths) -> bool:
    """Whether a stage still waits to be released."""
    return waiting(ledger.skim(run.events).of_this_submission)


def waiting(events: ledger.Events) -> bool:
    """The same, by the events of a submission."""
    held = bool((events.last("submitted") or {}).get("held"))
    return held and events.last("released", "started", "cancelling", "ended") is None


@contextmanager
def locked(run: RunPaths) -> Iterator[None]:
    """Only one process at a time lets stages of this pipeline begin; the lock goes with its process."""
    descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
