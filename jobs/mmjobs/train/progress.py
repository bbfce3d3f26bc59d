"""Progress: where a run stands, as its checkpoints keep it in `state.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

NAME = "state.json"


@dataclass
class Progress:
    """What the next step depends on besides weights, optimiser and random states; equal on all ranks."""

    step: int = 0
    """Finished optimiser steps."""
    cursor: int = 0
    """The global index of the next example."""
    evaluated: int | None = None
    """The step of the last finished evaluation."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What that evaluation measured."""
    best: float | None = None
    """The best value so far of the metric that the recipe calls best."""

    def write(self, folder: Path) -> None:
        (folder / NAME).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Progress:
        return cls(**json.loads((folder / NAME).read_text(encoding="utf-8")))
