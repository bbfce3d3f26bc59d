"""Where a rank is: the step and the sample that an error record names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a rank says where it is before torch is there
    from mmjobs.data.example import Origin


@dataclass
class Position:
    """Kept up to date by the loop, read when something is raised."""

    step: int | None = None
    samples: Sequence[Origin] = ()
    """What is being computed."""

    @property
    def sample(self) -> str | None:
        """The first of them, and how many more there are."""
        if not self.samples:
            return None
        return f"{self.samples[0]}" + (f" (or {len(self.samples) - 1} more)" if len(self.samples) > 1 else "")
