"""Where a rank is: the step and the sample that an error record names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Whereabouts:
    """Kept up to date by the loop, read when something is raised."""

    step: int | None = None
