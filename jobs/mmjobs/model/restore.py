"""Restoring a trained model: the network of a recipe with the weights of one of its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmjobs.model import adapters, heads, parts, weights
from mmjobs.model.build import BuiltModel, build, skeleton
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.recipe.model import Model
from mmlaunch.run.paths import of_checkpoint


def restore(recipe: Recipe, checkpoint: Path) -> BuiltModel:
    """The model in the types that it was trained in, with its adapters and its scoring head."""
    built = skeleton(recipe.model, recipe.precision, empty=True)
    if recipe.objective.has_scoring_head:
        heads.add_score(built.network)
    adapters.add(built.network, recipe.model, empty=True)
    parts.freeze(built.network, recipe.model, recipe.precision)
    weights.load(built.network, checkpoint, build)
    return built


def opened(name: str, precision: str | None = None) -> BuiltModel:
    """A model that only answers: of a run's checkpoint, of an export, or of any folder or hub name that transformers
    reads. `precision`: left out, that of the run, or fp32."""
    checkpoint = of_checkpoint(Path(name))
    if checkpoint is None:
        built = skeleton(Model(pretrained=name), precision or "fp32", empty=False)
    else:
        recipe = resolved.read(checkpoint[0].resolved)
        built = restore(recipe.model_copy(update={"precision": precision or recipe.precision}), Path(name))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network: Any = built.network.requires_grad_(False).eval()
    network.to(device)
    return built
