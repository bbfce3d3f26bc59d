"""Restoring a trained model: the network of a recipe with the weights of one of its checkpoints."""

from __future__ import annotations

from pathlib import Path

from mmjobs.model import adapters, heads, parts, weights
from mmjobs.model.build import BuiltModel, skeleton
from mmlaunch.recipe import Recipe


def restore(recipe: Recipe, checkpoint: Path) -> BuiltModel:
    """The model in the types that it was trained in, with its adapters and its scoring head."""
    built = skeleton(recipe.model, recipe.precision, empty=True)
    if recipe.objective.SCORING_HEAD:
        heads.add_score(built.network)
    adapters.add(built.network, recipe.model)
    parts.freeze(built.network, recipe.model, recipe.precision)
    weights.load(built.network, checkpoint)
    return built
