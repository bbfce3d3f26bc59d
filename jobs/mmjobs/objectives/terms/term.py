"""The mark `@term`, which makes a function a term of the preference objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from mmjobs.objectives.policy_vs_reference import PolicyVsReference
from mmlaunch.errors import PluginFailed
from mmlaunch.recipe.plugin import Plugin
from mmlaunch.run import plugins

Loss = Callable[[PolicyVsReference, Any], torch.Tensor]
F = TypeVar("F", bound=Callable[..., torch.Tensor])


@dataclass(frozen=True)
class RegisteredTerm:
    """A function from pairs and the term's options in the recipe to one loss for each pair: [N]."""

    loss: Loss
    by_example: bool
    """It computes one loss for each example instead: [E]."""
    needs_global_batch: bool
    """The loss of an example depends on the others of the global batch."""


REGISTERED: dict[str, RegisteredTerm] = {}
"""By name. `sft` is not among them: it is a mean over tokens, and stands in the objective itself."""


def term(by_example: bool = False, needs_global_batch: bool = False) -> Callable[[F], F]:
    """Register a function under its own name, which is also its name in a recipe (`objective.terms`)."""

    def register(function: F) -> F:
        REGISTERED[function.__name__] = RegisteredTerm(function, by_example, needs_global_batch)
        return function

    return register


def own_term(plugin: Plugin) -> RegisteredTerm:
    """A function of the user's own. It may carry the mark; without it, it gives one loss for each pair: [N]."""
    function = plugins.load(plugin.file, plugin.module, plugin.name)
    marked = REGISTERED.get(plugin.name)

    def loss(pairs: PolicyVsReference, options: Any) -> torch.Tensor:
        with plugins.named(plugin.written, function):
            values = function(pairs, options)
        if not isinstance(values, torch.Tensor) or values.dim() != 1:
            shape = (
                f"a tensor of shape {list(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__
            )
            raise PluginFailed(
                f"{plugin.written} returned {shape}; return one loss for each pair: a tensor of shape [N]"
            )
        return values

    if marked is not None and marked.loss is function:
        return replace(marked, loss=loss)
    return RegisteredTerm(loss, False, False)
