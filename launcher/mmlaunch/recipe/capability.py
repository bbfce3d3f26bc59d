"""What the trainer of this version cannot run yet: refused when a run is submitted, never ignored in silence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmlaunch.errors import Problem
from mmlaunch.recipe.recipe import Recipe

_LATER = "validate and render work; this version of the trainer cannot run it yet"


def unsupported(recipe: Recipe) -> list[Problem]:
    """Each part of a valid recipe that the trainer would have to ignore."""
    asked = _training(recipe)
    return [
        Problem(path, f"{value!r} is not trained by this version", f"{_LATER}; {right}") for path, value, right in asked
    ]


Asked = Iterator[tuple[tuple[str | int, ...], Any, str]]


def _training(recipe: Recipe) -> Asked:
    measured = recipe.objective.evaluation_metrics
    if recipe.checkpoint.best not in (None, *measured):
        yield ("checkpoint", "best"), recipe.checkpoint.best, recipe.objective.measures
    if recipe.stop is not None and recipe.stop.metric not in measured:
        yield ("stop", "metric"), recipe.stop.metric, recipe.objective.measures
