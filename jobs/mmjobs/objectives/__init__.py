"""The objectives by the names that recipe sections give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmjobs.objectives.custom import custom
from mmjobs.objectives.objective import Objective, Reference
from mmjobs.objectives.preference import Preference
from mmjobs.objectives.reward import Reward
from mmjobs.objectives.sft import Sft
from mmlaunch.recipe.method import Method

OBJECTIVES: dict[str, Callable[[Any, Reference | None, float], Objective]] = {
    "sft": lambda settings, reference, std: Sft(),
    "reward": lambda settings, reference, std: Reward(settings),
    "preference": Preference,
    "custom": lambda settings, reference, std: custom(settings, reference),
}
"""Each is built from its section, the reference model that runs at every step, and the std of the data's score gaps."""


def objective_of(settings: Method, reference: Reference | None = None, std: float = 1.0) -> Objective:
    """The objective of a recipe."""
    return OBJECTIVES[settings.OBJECTIVE](settings, reference, std)
