"""The objectives by the method that a recipe names: what a batch is worth, as sums and counts."""

from __future__ import annotations

from collections.abc import Callable

from mmjobs.objectives.measured import Objective
from mmjobs.objectives.sft import Sft

OBJECTIVES: dict[str, Callable[[], Objective]] = {"sft": Sft}
