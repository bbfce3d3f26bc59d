"""Reward models that a recipe names: whether they can score what it gives them, as far as their recipes tell."""

from __future__ import annotations

from pathlib import Path

from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.recipe.inference import Score
from mmlaunch.run.paths import of_checkpoint

STATISTICS = "reward.json"
"""The file of an export that says how its rewards are spread."""


def unfit(recipe: Recipe, folder: Path) -> tuple[str, str] | None:
    """What is wrong with a reward model, and what would be right; None where nothing is known to be."""
    checkpoint = of_checkpoint(folder)
    right = "name a run of objective: reward, or its export"
    if checkpoint is None:
        return (
            None if (folder / STATISTICS).is_file() else (f"{folder} has no {STATISTICS}: it is no reward model", right)
        )
    run, _ = checkpoint
    try:
        own = resolved.read(run.resolved)
    except BadInput:  # of another version: the job will read it, or say why not
        return None
    return unlike(recipe, own, run.name)


def unlike(recipe: Recipe, own: Recipe, name: str) -> tuple[str, str] | None:
    """The same for a reward model whose recipe is known; `name` is that of its run or stage."""
    if not own.objective.has_scoring_head:
        what = f"{name} is a run of {own.objective.method}, its model gives no scores"
        return what, "name a run of objective: reward, or its export"
    if isinstance(recipe.objective, Score):  # there is no policy: the reward model reads the data itself
        return None
    policy, reward = recipe.model, own.model
    for part, of_policy, of_reward in (
        ("chat template", policy.chat_template, reward.chat_template),
        ("base model", policy.pretrained, reward.pretrained),
        ("vision encoder", policy.vision, reward.vision),
    ):
        if of_policy != of_reward:
            what = f"{name} has another {part} than the policy, and would read its answers otherwise"
            return what, "train the reward model from the policy's own model"
    return None
