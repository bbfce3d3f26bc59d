"""The estimate in one line, for the output of `submit`."""

from __future__ import annotations

from mmlaunch.errors import UserError
from mmlaunch.estimate.checkpointing import checkpointing
from mmlaunch.estimate.memory import GIGA, Estimate, estimate
from mmlaunch.recipe import Recipe


def line(recipe: Recipe, gpu_memory: float | None = None) -> str | None:
    """`8.37 B parameters, 168 M trained (LoRA 128 + projector); about 61 of 80 GB, checkpointing off`.

    None if the shapes of the model are not known on this machine.
    """
    try:
        made = estimate(recipe)
    except UserError:  # the job knows more, or will report the mistake
        return None
    on, _ = checkpointing(recipe, gpu_memory, made)
    needs = gigabytes(made.memory(on).total)
    if gpu_memory is not None and recipe.resources.gpus_per_node:
        memory = f"about {needs} of {gpu_memory:g} GB"
    else:
        memory = f"about {needs} GB of each {'GPU' if recipe.resources.gpus_per_node else 'rank'}"
    return f"{short(made.counts.total)} parameters, {_learns(made)}; {memory}, checkpointing {'on' if on else 'off'}"


def short(number: int) -> str:
    """`8.37 B`, `168 M`: about three digits and a unit."""
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if number >= size:
            digits = 2 if number < 10 * size else 1 if number < 100 * size else 0
            return f"{number / size:.{digits}f} {unit}"
    return f"{number:,}"


def gigabytes(size: int) -> str:
    """`61`, `0.98`."""
    return f"{size / GIGA:.0f}" if size >= 10 * GIGA else f"{size / GIGA:.2g}"


def _learns(made: Estimate) -> str:
    recipe = made.recipe
    if not recipe.trains:
        return "none trained"
    ways = dict.fromkeys(_way(recipe, part.name) for part in reversed(made.counts.parts) if part.trained)
    return f"{short(made.counts.trained)} trained ({' + '.join(ways)})"


def _way(recipe: Recipe, part: str) -> str:
    lora = recipe.model.lora
    kind = "QLoRA" if lora and lora.quantise != "none" else "LoRA"
    return f"{kind} {lora.rank}" if lora and getattr(recipe.model.train, part, None) == "lora" else part
