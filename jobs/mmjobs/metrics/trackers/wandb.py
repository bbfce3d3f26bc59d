"""Weights & Biases: online where its server and a key are there, otherwise files for `wandb sync`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from mmjobs.metrics.trackers.tracker import TrackedRun

PACKAGE = "wandb"
SERVER = "https://api.wandb.ai"
KEEPS_AFTER = math.inf
"""Offline its process writes blocks of 32 KiB, and loses what it has when this one is killed."""
_START = 30
"""Seconds that the start of a run may take; its own limit is longer than users want to wait for curves."""


def open_tracker(run: TrackedRun) -> Wandb:
    """The run of this name, begun or gone on with."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    run.folder.mkdir(parents=True, exist_ok=True)
    key = bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
    online = run.reaches(os.environ.get("WANDB_BASE_URL", SERVER), allowed=key and "WANDB_MODE" not in os.environ)
    arguments: dict[str, Any] = {
        "project": run.project,
        "id": run.name,
        "name": run.name,
        "resume": "allow",
        "dir": str(run.folder),
        "config": dict(run.config),
        "mode": os.environ.get("WANDB_MODE", "online" if online else "offline"),
        "settings": wandb.Settings(init_timeout=_START, console="off"),
    }
    return Wandb(wandb.init(**arguments | dict(run.options)))


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One row; rows of the same step become one."""
        self._run.log(dict(values), step=step)

    def close(self, done: bool) -> None:
        """A run that is not done yet is shown as preempted until the next attempt."""
        if not done:
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if done else 1)
