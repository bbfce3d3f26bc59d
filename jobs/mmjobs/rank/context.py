"""The context of an attempt: what every part of a rank's work may ask for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mmjobs.rank.events import EventWriter
from mmjobs.rank.position import Position
from mmjobs.rank.ranks import Ranks
from mmjobs.rank.signals import StopRequest
from mmlaunch.recipe import Recipe
from mmlaunch.run.paths import AttemptPaths, RunPaths


@dataclass(frozen=True)
class Context:
    """One attempt at a run, as one rank sees it."""

    recipe: Recipe
    paths: RunPaths
    ranks: Ranks
    events: EventWriter
    position: Position
    """Where this rank is; error records name it."""
    stop: StopRequest

    @property
    def attempt(self) -> AttemptPaths:
        return self.paths.attempt(self.events.attempt)

    @property
    def deepspeed(self) -> dict[str, Any]:
        """The DeepSpeed configuration that the launcher rendered for this attempt."""
        config: dict[str, Any] = json.loads(self.attempt.deepspeed.read_text())
        return config
