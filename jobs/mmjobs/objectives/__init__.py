"""The objectives: what a batch is worth, as sums and counts."""

from __future__ import annotations

from mmjobs.objectives.objective import Objective
from mmjobs.objectives.preference import Preference, Reference
from mmjobs.objectives.reward import Reward
from mmjobs.objectives.sft import Sft
from mmlaunch.errors import BadInput
from mmlaunch.recipe import objective

__all__ = ["Reference", "objective_of"]


def objective_of(settings: objective.Objective, reference: Reference | None = None, spread: float = 1.0) -> Objective:
    """The objective of a recipe; `reference` where it is asked as the training goes on, `spread` of the score gaps."""
    if isinstance(settings, objective.Sft):
        return Sft()
    if isinstance(settings, objective.Reward):
        return Reward(settings)
    if isinstance(settings, objective.Preference):
        return Preference(settings, reference, spread)
    raise BadInput(f"objective: {settings.method!r} is not trained by this version")
