"""Where a rank is: the step and the sample that an error record names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Whereabouts:
    """Kept up to date by the loop, read when something is raised."""

    step: int | None = None


class NotFinite(ArithmeticError):
    """A loss or a gradient that is not a number. The weights are those of the step before."""

    def __init__(self, what: str, suspects: list[list[str]]) -> None:
        samples = [sample for rank in suspects for sample in rank]
        self.sample = samples[0] if samples else None
        shown = ", ".join(samples[:8]) + (f" and {len(samples) - 8} more" if len(samples) > 8 else "")
        super().__init__(f"{what}; samples: {shown or 'unknown'}")
