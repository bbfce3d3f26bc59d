"""What the trainer of this version cannot run yet: refused when a run is submitted, never ignored in silence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmlaunch.errors import Problem
from mmlaunch.recipe.model import Tiling
from mmlaunch.recipe.recipe import Recipe

MEASURED = ("eval/loss", "eval/accuracy", "eval/token_accuracy")

_LATER = "validate and render work; this version of the trainer cannot run it yet"


def unsupported(recipe: Recipe) -> list[Problem]:
    """Each part of a valid recipe that the trainer would have to ignore."""
    asked = [*_objective(recipe), *_model(recipe), *_data(recipe), *_training(recipe)]
    return [
        Problem(path, f"{value!r} is not trained by this version", f"{_LATER}; {right}") for path, value, right in asked
    ]


Asked = Iterator[tuple[tuple[str | int, ...], Any, str]]


def _objective(recipe: Recipe) -> Asked:
    if recipe.objective.method != "sft":
        yield ("objective",), recipe.objective.method, "it runs sft"


def _model(recipe: Recipe) -> Asked:
    model = recipe.model
    for part in ("vision", "language"):
        section = getattr(model, part)
        if section is None and not model.pretrained:
            yield ("model", part), None, f"it runs {part}: {{random: {{width: 96}}}}"
        elif section is not None and section.path is not None:
            yield ("model", part), section.path, f"it runs {part}: {{random: {{width: 96}}}}"
    for key in ("pretrained", "init_from", "lora"):
        if getattr(model, key) is not None:
            yield ("model", key), _short(getattr(model, key)), "it runs without"
    wanted = {
        "attention": ("plain",), "activation_checkpointing": ("auto", "off"), "chat_template": ("plain", "processor"),
        "weights": ("auto", "fp32"), "remote_code": ("refuse",),
    }  # fmt: skip
    for key, values in wanted.items():
        if getattr(model, key) not in values:
            yield ("model", key), getattr(model, key), f"it runs {values[0]}"
    if model.projector.kind not in ("linear", "mlp"):
        yield ("model", "projector"), model.projector.kind, "it runs linear and mlp"
    if model.tiling != Tiling():
        yield ("model", "tiling"), model.tiling.kind, "it runs resize"


def _data(recipe: Recipe) -> Asked:
    for group in ("train", "eval"):
        for index, source in enumerate(getattr(recipe.data, group)):
            if source.format != "shapes":
                yield ("data", group, index, "format"), source.format, "it runs shapes"
            for key in ("split", "images", "max_tiles"):
                if getattr(source, key) is not None:
                    yield ("data", group, index, key), getattr(source, key), "shapes have none"
            if source.augment != "none":
                yield ("data", group, index, "augment"), source.augment, "it runs augment: none"


def _training(recipe: Recipe) -> Asked:
    if recipe.resources.gpus_per_node:
        yield ("resources", "gpus_per_node"), recipe.resources.gpus_per_node, "it runs on CPUs: gpus_per_node: 0"
    if recipe.checkpoint.best not in (None, *MEASURED):
        yield ("checkpoint", "best"), recipe.checkpoint.best, f"it measures {', '.join(MEASURED)}"
    if recipe.precision == "fp16":
        yield ("precision",), "fp16", "it runs fp32 and bf16"
    if recipe.batch.tokens_per_gpu is not None:
        yield ("batch", "tokens_per_gpu"), recipe.batch.tokens_per_gpu, "it runs batch.micro"
    if recipe.deepspeed.stage:
        yield ("deepspeed", "stage"), recipe.deepspeed.stage, "it runs stage 0"
    if recipe.deepspeed.overrides:
        yield ("deepspeed", "overrides"), sorted(recipe.deepspeed.overrides), "it runs without"


def _short(value: Any) -> Any:
    return value if isinstance(value, str) else "set"
