"""The data formats by the name that a recipe calls them: one file each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmjobs.data.example import Example
from mmjobs.data.formats import shapes
from mmlaunch.recipe.data import Source

FORMATS: dict[str, Callable[[Source], Sequence[Example]]] = {"shapes": shapes.rows}
"""Each gives the rows that a source names, after its `skip` and `limit`."""
