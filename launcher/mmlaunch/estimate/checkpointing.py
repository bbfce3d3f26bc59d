"""Whether a run needs activation checkpointing: as its recipe says, or by the estimate of its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmlaunch.recipe import Recipe

if TYPE_CHECKING:
    from mmlaunch.estimate.memory import Estimate


def checkpointing(recipe: Recipe, gpu_memory: float | None = None, made: Estimate | None = None) -> tuple[bool, str]:
    """Whether a run recomputes activations, and why. That costs a third of a step, with LoRA half of one."""
    word = recipe.model.activation_checkpointing
    if word != "auto":
        return word == "on", f"model.activation_checkpointing is {word}"
    if not recipe.resources.gpus_per_node:
        return False, "the run uses no GPU"
    if gpu_memory is None:
        return False, "nothing says how much memory a GPU has: write gpu_memory into the cluster profile"
    from mmlaunch.estimate.memory import GIGA, estimate
    from mmlaunch.estimate.shapes.configs import UnknownShapes  # the arithmetic takes a while to import

    try:
        made = made or estimate(recipe)
    except UnknownShapes as error:
        return False, str(error)
    without, size = made.memory(False).total, f"{gpu_memory:g} GB"
    if without <= gpu_memory * GIGA:
        return False, f"a step fits without: {without / GIGA:.0f} of {size}"
    return True, f"a step would need {without / GIGA:.0f} of {size} without, {made.memory(True).total / GIGA:.0f} with"
