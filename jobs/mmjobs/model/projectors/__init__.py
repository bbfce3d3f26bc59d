"""The projectors by the name that a recipe calls them: one file each."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from transformers import LlavaConfig

from mmjobs.model.projectors import linear, mlp

PROJECTORS: dict[str, Callable[[LlavaConfig], nn.Module]] = {"linear": linear.build, "mlp": mlp.build}
