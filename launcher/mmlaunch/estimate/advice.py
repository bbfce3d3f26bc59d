"""Whether a recipe fits a GPU, and the first change that makes it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmlaunch.estimate.checkpointing import checkpointing
from mmlaunch.estimate.memory import GIGA, Estimate, estimate
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.model import Lora
from mmlaunch.recipe.section import Section

SIZES = (24, 40, 80, 141)
"""The usual sizes of GPUs, in GB."""
_ON = {"model.activation_checkpointing": "on"}
_LORA = {"model.train.language": "lora", "model.lora.rank": 64, "model.lora.alpha": 128}

Change = dict[str, Any]


@dataclass(frozen=True)
class Fit:
    """Whether a recipe fits one size of GPU."""

    size: int
    fits: bool
    checkpointing: bool
    needs: int
    """Bytes."""
    change: tuple[str, ...] = ()
    """Overrides that make it fit; empty if it fits, or if no known override is enough."""


def fit(made: Estimate, size: int, decided: bool = False) -> Fit:
    """Whether it fits into `size` GB; `decided`: `auto` is decided for just this size."""
    on = made.recipe.model.activation_checkpointing == "on"
    if decided:
        on = checkpointing(made.recipe, size, made)[0]
    needs = made.memory(on).total
    if needs <= size * GIGA:
        return Fit(size, True, on, needs)
    for change in _changes(made.recipe):
        other = changed(made.recipe, change)
        if estimate(other).memory(other.model.activation_checkpointing == "on").total <= size * GIGA:
            return Fit(size, False, on, needs, tuple(f"{path}={value}" for path, value in change.items()))
    return Fit(size, False, on, needs)


def changed(recipe: Recipe, change: Change) -> Recipe:
    """The recipe with overrides that are known to be sound."""
    for path, value in change.items():
        recipe = _with(recipe, path.split("."), value)
    return recipe


def _with(section: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    below: Section | None = getattr(section, name)
    if rest:
        value = _with(Lora() if below is None else below, rest, value)
    return section.model_copy(update={name: value})


def _changes(recipe: Recipe) -> Iterator[Change]:
    """Changes that save memory, the cheapest first: a higher ZeRO stage, checkpointing, offloading, then LoRA.

    Frozen matrices beside adapters are rounded to 4 bits first, and kept in CPU memory last, which is far slower.
    """
    stages: list[Change] = []
    if recipe.trainers.world > 1:
        stages = [{"deepspeed.stage": stage} for stage in range(recipe.deepspeed.stage + 1, 4)]
    on = [_ON] if recipe.model.activation_checkpointing != "on" else []
    more = on[0] if on else {}
    with_or_without: list[Change] = [{}, *on]
    yield from stages
    yield from on
    yield from ({**stage, **more} for stage in stages for more in on)
    optimiser: list[Change] = []
    if recipe.deepspeed.offload == "none":
        optimiser = [{"deepspeed.stage": max(2, recipe.deepspeed.stage), "deepspeed.offload": "optimizer"}]
    rounded: list[Change] = []
    everything: list[Change] = []
    adapters = recipe.model.lora
    if recipe.deepspeed.offload != "all":
        everything = [{"deepspeed.stage": 3, "deepspeed.offload": "all"}]
        can_round = adapters is None or (adapters.quantise == "none" and not adapters.dora)
        if can_round and recipe.objective.served_by is None:  # no engine serves such weights
            rounded = [{"model.lora.quantise": "nf4", "deepspeed.stage": min(2, recipe.deepspeed.stage)}]
    others = [*optimiser, *(rounded if adapters is not None else []), *everything]
    yield from ({**other, **with_on} for other in others for with_on in with_or_without)
    if recipe.model.train.language == "full":
        # A policy that learns an adapter alone is its own reference without it; otherwise that is a copy.
        lora = _LORA | ({"model.train.projector": "frozen"} if recipe.objective.ROLLOUTS else {})
        yield from ({**lora, **with_on} for with_on in with_or_without)
        yield from ({**lora, **stage, **more} for stage in [*stages, *rounded])
        yield from ({**lora, **offload, **more} for offload in [*optimiser, *everything])
