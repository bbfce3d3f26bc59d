"""Progress: where a run stands, as its checkpoints keep it in `state.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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
    left_out: int = 0
    """Steps that changed nothing, because their loss or their gradient was not finite."""
    streak: int = 0
    """How many of them the last ones are."""
    data: str = ""
    """A digest of what is trained on."""
    objective: dict[str, Any] = field(default_factory=dict)
    """What the objective remembers."""
    layout: dict[str, Any] = field(default_factory=dict)
    """What an engine must have in common with the one that saved."""

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Progress:
        return cls(**json.loads((folder / NAME).read_text(encoding="utf-8")))
