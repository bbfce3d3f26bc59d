"""What an objective measures, by name: for the trainer that does it, and for recipes that choose the best by it."""

from __future__ import annotations

from mmlaunch.recipe.objective import Objective, Preference, Reward

BINS = ("below_0.5", *(f"from_0.{tenth}" for tenth in range(5, 10)))
"""Of the label histogram of MMPO."""


def metrics(objective: Objective) -> tuple[str, ...]:
    """The sums that are kept beside the loss."""
    if isinstance(objective, Reward):
        return "reward", "reward_squared", "accuracy", "margin"
    if not isinstance(objective, Preference):
        return "accuracy", "token_accuracy"
    terms = objective.weighted
    names = ["accuracy", *(f"rewards/{name}" for name in ("chosen", "rejected", "margin"))]
    names += ["logps/chosen", "logps/rejected", *(f"loss/{name}" for name in terms)]
    names += ["kl"] if objective.refers else []
    names += ["conditional_accuracy"] if "image_conditional" in terms else []
    names += ["shift"] if "bco" in terms else []
    return (*names, *(f"labels/{name}" for name in BINS if "margin" in terms))


def evaluated(objective: Objective) -> list[str]:
    """What an evaluation tells, as `checkpoint.best` may name it."""
    told = {"reward_squared": "reward_spread"}
    return ["eval/loss", *(f"eval/{told.get(name, name)}" for name in metrics(objective))]
