"""The position of a rank: the step and the samples that an error record names."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a rank has a position before torch is imported
    from mmjobs.data.example import Origin


@dataclass
class Position:
    """Updated by the loop, read when something is raised."""

    step: int | None = None
    samples: Sequence[Origin] = ()
    """What is being computed."""

    @property
    def sample(self) -> str | None:
        """The first of them, and how many more there are."""
        if not self.samples:
            return None
        return f"{self.samples[0]}" + (f" (or {len(self.samples) - 1} more)" if len(self.samples) > 1 else "")


def node() -> str:
    """The name that Slurm knows this node by, or its own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
