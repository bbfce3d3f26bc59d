"""The names of everything inside a run directory; nobody else joins these paths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AttemptPaths:
    """One attempt: the script that ran, its DeepSpeed configuration, what its ranks said."""

    root: Path

    @property
    def number(self) -> int:
        return int(self.root.name)

    @property
    def script(self) -> Path:
        return self.root / "script.sh"

    @property
    def deepspeed(self) -> Path:
        return self.root / "deepspeed.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def stacks(self) -> Path:
        return self.root / "stacks"

    @property
    def not_finite(self) -> Path:
        """The batches whose loss or gradient was not finite, as each rank had them."""
        return self.root / "not-finite"

    @property
    def heartbeats(self) -> Path:
        """`rank-<r>.json` for each rank: its phase, its step, and when it last moved."""
        return self.root / "heartbeats"

    def rank_log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.out"

    def rank_error(self, rank: int) -> Path:
        """The record that a failing rank leaves: type, message, step, sample."""
        return self.logs / f"rank-{rank}.error.json"

    @property
    def rank_errors(self) -> list[Path]:
        return sorted(self.logs.glob("rank-*.error.json"))


@dataclass(frozen=True)
class CheckpointPaths:
    """What is inside a checkpoint folder."""

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "MANIFEST.json"

    @property
    def state(self) -> Path:
        """The train state: the step, the state of the data source, the best metric."""
        return self.root / "state.json"

    def random(self, rank: int) -> Path:
        """The random states of a rank."""
        return self.root / f"rank-{rank}.pt"

    def engine(self, name: str) -> Path:
        """The folder that an engine is loaded from. A checkpoint of version 0.1 has one engine, in its root."""
        folder = self.new_engine(name)
        return folder if folder.is_dir() else self.root

    def new_engine(self, name: str) -> Path:
        """The folder that an engine is saved in."""
        return self.root / name


@dataclass(frozen=True)
class RunPaths:
    """A run directory."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        return self.root / "recipe.resolved.yaml"

    @property
    def code(self) -> Path:
        return self.root / "code"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def job(self) -> Path:
        """submitit's own folder: the pickled callable."""
        return self.root / "job"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def reference(self) -> Path:
        """The reference's log-probabilities, in a folder for each set of weights."""
        return self.root / "reference"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def skipped(self) -> Path:
        """The rows of the data that are left out, with their reasons."""
        return self.root / "data" / "skipped.jsonl"

    def attempt(self, number: int) -> AttemptPaths:
        return AttemptPaths(self.attempts / str(number))

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step}"
