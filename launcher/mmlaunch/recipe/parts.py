"""The parts of a model: which parameter belongs to which part, and how a recipe trains each part."""

from __future__ import annotations

from mmlaunch.recipe.model import Model

PARTS = ("vision", "projector", "language", "embeddings", "head")
ADAPTED = ("vision", "projector", "language")
"""The parts that LoRA can be added to."""

_NAMES = (
    ("head", ("score.",)),
    (
        "projector",
        ("multi_modal_projector.", "connector.", "visual.merger.", "visual.deepstack_merger", "image_newline"),
    ),
    ("vision", ("vision_tower.", "visual.", "vision_model.")),
    ("embeddings", ("embed_tokens.", "lm_head.")),
)
"""The first match decides: a merger stands inside the vision encoder, the embeddings inside the language model."""


def part_of(name: str) -> str:
    """The part that a parameter belongs to, by its name in any supported family of models."""
    dotted = f".{name}"
    return next((part for part, names in _NAMES if any(f".{prefix}" in dotted for prefix in names)), "language")


def training_of(part: str, model: Model) -> str:
    """How a part is trained: frozen, full or lora."""
    if part == "head":
        return "full"
    if part == "embeddings":
        train = model.train
        trained = train.embeddings if train.embeddings is not None else train.language == "full"
        return "full" if trained else "frozen"
    return str(getattr(model.train, part))


def too_many_vision_layers(used: int, last: int | None) -> str | None:
    """What is wrong with `model.train.vision_layers`, if anything: only `used` layers of the encoder are run."""
    if last is None or 0 < used >= last:
        return None
    return f"model.train.vision_layers: {last} are asked for, and {used} are used; write at most {used}"


def frozen_vision(layers: int, used: int, last: int | None, class_token: bool) -> tuple[str, ...]:
    """The beginnings of the names of vision parameters that are never trained.

    These are the layers after the one that the projector reads and, with `model.train.vision_layers`, all before the
    `last` ones up to it. `class_token`: whether the projector reads the class token.
    """
    first = 0 if last is None else used - last
    names = [f"encoder.layers.{n}." for n in range(layers) if n >= used or n < first] + ["post_layernorm."]
    if last is not None:
        names += ["embeddings.", "pre_layrnorm."]
    if used == 0 and not class_token:
        names.append("embeddings.class_embedding")
    return tuple(f"model.vision_tower.{name}" for name in names)
