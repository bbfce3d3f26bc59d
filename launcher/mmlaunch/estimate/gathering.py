"""Whether each rank gathers a divided policy once for a rollout, or runs it layer by layer together with the others."""

from __future__ import annotations

from mmlaunch.estimate.checkpointing import checkpointing
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.reinforcement import Reinforcement


def gathers(recipe: Recipe, gpu_memory: float | None = None) -> bool:
    """Once, where the estimate says that it fits, or where nothing says how much memory a GPU has."""
    here = isinstance(recipe.objective, Reinforcement) and recipe.objective.served_by is None
    if not here or recipe.deepspeed.stage != 3 or gpu_memory is None or not recipe.resources.gpus_per_node:
        return True
    from mmlaunch.estimate.memory import GIGA, estimate
    from mmlaunch.estimate.shapes.configs import UnknownShapes  # the arithmetic takes a while to import

    try:
        made = estimate(recipe)
    except UnknownShapes:
        return True
    memory = made.memory(checkpointing(recipe, gpu_memory, made)[0])
    return memory.total - memory.activations + made.whole_generation <= gpu_memory * GIGA
