"""The train state: what the next step depends on besides weights, optimiser and random states; `state.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MODEL = "model"
"""The name of the engine that holds the model of the run; a critic has another one beside it."""


@dataclass
class TrainState:
    """Equal on all ranks."""

    step: int = 0
    """Finished optimiser steps."""
    evaluated: int | None = None
    """The step of the last finished evaluation."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The metrics of that evaluation."""
    best: float | None = None
    """The best value so far of the metric that the recipe calls best."""
    stop_best: float | None = None
    """The best value so far of the metric that decides about early stopping."""
    not_better: int = 0
    """How many of the last evaluations in a row were not better."""
    left_out: int = 0
    """Steps that changed nothing, because their loss or their gradient was not finite."""
    streak: int = 0
    """How many of the last steps in a row were left out."""
    source: dict[str, Any] = field(default_factory=dict)
    """The state of the source of batches: its cursor, a digest of its data."""
    learner: dict[str, Any] = field(default_factory=dict)
    """The state of the learner: what its objective remembers."""
    layouts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For each engine, what another engine must have in common with it to load its files."""

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> TrainState:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if "cursor" in fields:  # version 0.1: one engine without a name, one objective, one data set
            fields["source"] = {"cursor": fields.pop("cursor"), "data": fields.pop("data")}
            fields["learner"] = fields.pop("objective")
            fields["layouts"] = {MODEL: fields.pop("layout")}
        return cls(**fields)
