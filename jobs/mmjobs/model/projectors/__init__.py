"""The projectors by the name that a recipe calls them: one file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from mmjobs.model.projectors import linear, mlp, perceiver, pixel_shuffle, vit
from mmjobs.model.projectors.widths import Widths


@dataclass(frozen=True)
class Kind:
    """A projector: how it is built, and how many features it makes of an image."""

    build: Callable[[Widths], nn.Module]
    features: Callable[[Widths], int]


PROJECTORS: dict[str, Kind] = {
    "linear": Kind(linear.build, linear.features),
    "mlp": Kind(mlp.build, mlp.features),
    "vit": Kind(vit.build, vit.features),
    "perceiver": Kind(perceiver.build, perceiver.features),
    "pixel_shuffle": Kind(pixel_shuffle.build, pixel_shuffle.features),
}
