"""`mmlaunch estimate`: Memory of each GPU, and the GPUs that a recipe fits."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from mmlaunch.cli import options
from mmlaunch.cli.columns import show
from mmlaunch.estimate.advice import SIZES, Fit, fit
from mmlaunch.estimate.checkpointing import checkpointing
from mmlaunch.estimate.counts import Part
from mmlaunch.estimate.memory import GIGA, Estimate, Memory, estimate
from mmlaunch.load import load_recipe
from mmlaunch.load.cluster import gigabytes
from mmlaunch.recipe import Recipe
from mmlaunch.schedulers import choose

_LABELS = {"optimiser": "optimiser states", "reference": "reference model"}


@click.command(
    epilog="\b\nExamples:\n  mmlaunch estimate recipes/dpo_llama3.yaml\n"
    "  mmlaunch estimate my.yaml -s deepspeed.stage=3 -s batch.tokens_per_gpu=4096\n"
    "  mmlaunch estimate my.yaml --cluster alps --json | jq .memory"
)
@options.recipe()
@options.overrides
@options.cluster
@options.as_json
def command(recipe: str, overrides: tuple[str, ...], cluster: str | None, as_json: bool) -> None:
    """Memory of each GPU for RECIPE, by component, and the GPUs that it fits. Reads no weights and needs no network."""
    loaded = load_recipe(recipe, overrides).recipe
    size = gigabytes(choose.profile(cluster)[1])
    made = estimate(loaded)
    on, reason = checkpointing(loaded, size, made)
    memory, fits = made.memory(on), _fits(made, size)
    if as_json:
        click.echo(json.dumps(_record(made, memory, on, reason, fits), indent=2))
    else:
        _say(made, memory, on, reason, fits)


def _fits(made: Estimate, size: float | None) -> list[Fit]:
    """The answers for the usual GPU sizes and for that of the profile, for which `auto` is decided already."""
    if not made.recipe.resources.gpus_per_node:
        return []
    sizes = sorted({*SIZES, *([round(size)] if size else [])})
    return [fit(made, one, decided=bool(size) and one == round(size or 0)) for one in sizes]


def _say(made: Estimate, memory: Memory, on: bool, reason: str, fits: list[Fit]) -> None:
    recipe = made.recipe
    click.echo(f"{click.style(recipe.name, bold=True)}   {_setting(made)}\n")
    parts = [*made.counts.parts, Part("all", made.counts.total, made.counts.trained)]
    show(["part", f"{'parameters':>15}", f"{'trained':>15}"],
         [[part.name, f"{part.total:>15,}", f"{part.trained:>15,}"] for part in parts])  # fmt: skip
    click.echo()
    unit, size = ("GB", GIGA) if memory.total >= 2 * GIGA else ("MB", GIGA // 1000)
    rows = {**memory.components, "all": memory.total}
    labels = _LABELS | ({"reference": "frozen models"} if recipe.objective.ROLLOUTS else {})
    where = "each GPU" if recipe.resources.gpus_per_node else "each rank"
    show([f"memory of {where}", f"{unit:>8}"],
         [[labels.get(name, name), f"{number / size:8.2f}"] for name, number in rows.items()])  # fmt: skip
    if memory.host:
        click.echo(f"and {memory.host / size:.2f} {unit} of CPU memory for each rank")
    if recipe.trains:
        click.echo(f"\na checkpoint has about {_bytes(made.saved.checkpoint)}" + _beside(made))
    click.echo(f"\nactivation checkpointing {'on' if on else 'off'}: {reason}")
    if made.network.tokens:
        click.echo(f"an image is {_image(made)}")
    if fits:
        click.echo()
        show(["GPU", "fits"], [[f"{one.size} GB", _answer(one)] for one in fits])


def _beside(made: Estimate) -> str:
    """What a run keeps beside its checkpoints."""
    saved = made.saved
    frozen = f"; weights that are not trained, {_bytes(saved.frozen)}, are kept once in the run" if saved.frozen else ""
    memory = f"; /dev/shm of each node holds {_bytes(saved.memory_of_node)}" if saved.memory_of_node else ""
    return frozen + memory


def _bytes(count: int) -> str:
    return f"{count / GIGA:.1f} GB" if count >= GIGA else f"{count / GIGA * 1000:.1f} MB"


def _setting(made: Estimate) -> str:
    recipe = made.recipe
    zero = f"ZeRO stage {recipe.deepspeed.stage}" if recipe.deepspeed.stage else "no ZeRO"
    offload = {"none": "", "optimizer": ", optimiser offloaded", "all": ", all offloaded"}[recipe.deepspeed.offload]
    world, tokens = recipe.resources.describe_world(), f"{made.row.tokens:,} tokens at a time"
    return f"{world}, {recipe.precision}, {zero}{offload}, {tokens}"


def _image(made: Estimate) -> str:
    network = made.network
    if network.squares == 1:
        return f"{network.features:,} tokens"
    return f"{network.features:,} tokens for each of 1 to {network.squares} squares: at most {network.tokens:,}"


def _answer(one: Fit) -> str:
    if one.fits:
        return f"yes, {one.needs / GIGA:.0f} GB, checkpointing {'on' if one.checkpointing else 'off'}"
    if one.change:
        return f"no, {one.needs / GIGA:.0f} GB; it would with {' '.join(f'-s {change}' for change in one.change)}"
    return f"no, {one.needs / GIGA:.0f} GB; ask for more GPUs, or for fewer tokens at a time"


def _record(made: Estimate, memory: Memory, on: bool, reason: str, fits: list[Fit]) -> dict[str, Any]:
    recipe: Recipe = made.recipe
    return {
        "name": recipe.name,
        "parameters": {part.name: {"total": part.total, "trained": part.trained} for part in made.counts.parts},
        "memory": memory.components,
        "total": memory.total,
        "host": memory.host,
        "saved": asdict(made.saved),
        "checkpointing": {"on": on, "reason": reason},
        "tokens": {"row": made.row.tokens, "image": made.network.tokens, "square": made.network.features},
        "fits": {str(one.size): {"fits": one.fits, "needs": one.needs, "change": list(one.change)} for one in fits},
    }
