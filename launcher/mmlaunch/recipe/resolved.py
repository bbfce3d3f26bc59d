"""`recipe.resolved.yaml`: the recipe as it was validated, with every default written out. Jobs read this one."""

from __future__ import annotations

from pathlib import Path

import yaml

from mmlaunch.errors import BadInput, RecipeError
from mmlaunch.recipe.check import recipe_of
from mmlaunch.recipe.recipe import Recipe

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the C version is ten times as fast; it may not be installed


def text_of(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    data = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    return str(yaml.dump(data, Dumper=DUMPER, sort_keys=False, allow_unicode=True, width=120))


def read(path: Path) -> Recipe:
    """The recipe of a run. A damaged file raises `BadInput`."""
    try:
        return recipe_of(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, RecipeError) as error:
        raise BadInput(f"{path}: {error}") from error
