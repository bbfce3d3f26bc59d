"""The projectors: every module of this folder that has `build` and `features`, by its name in a recipe."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from mmjobs.model.projectors.widths import Widths


@dataclass(frozen=True)
class Kind:
    """A projector: how it is built, and how many features it makes of an image."""

    build: Callable[[Widths], nn.Module]
    features: Callable[[Widths], int]


def _kinds() -> dict[str, Kind]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: Kind(module.build, module.features) for name, module in modules.items() if hasattr(module, "build")}


PROJECTORS = _kinds()
