"""The parts of a model: which parameter belongs to which, what is trained, in which type the rest is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from mmlaunch.errors import BadInput
from mmlaunch.recipe.model import Model

PARTS = ("vision", "projector", "language", "embeddings")
_PREFIXES = {
    "vision": ("model.vision_tower.",),
    "projector": ("model.multi_modal_projector.",),
    "embeddings": ("model.language_model.embed_tokens.", "lm_head."),
    "language": ("model.language_model.",),
}  # the first that fits; the embeddings stand inside the language model


def part_of(name: str) -> str:
    """The part that a parameter belongs to."""
    return next(part for part, prefix in _PREFIXES.items() if name.startswith(prefix))


def freeze(network: LlavaForConditionalGeneration, model: Model, precision: str) -> None:
    """Leave a gradient only to what the recipe trains and something reads, and keep the rest in its own type."""
    train = model.train
    embeddings = train.embeddings if train.embeddings is not None else train.language == "full"
    trained = {
        "vision": train.vision == "full",
        "projector": train.projector == "full",
        "language": train.language == "full",
        "embeddings": embeddings,
    }
    idle = _idle_vision(network, train.vision_layers)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trained[part_of(name)] and not name.startswith(idle))
    kept = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision if model.weights == "auto" else model.weights]
    if kept != torch.float32:
        _keep_frozen_in(network, kept)


def counts(network: nn.Module) -> dict[str, dict[str, int]]:
    """Trainable and frozen parameters of each part."""
    table = {part: {"trainable": 0, "frozen": 0} for part in PARTS}
    for name, parameter in network.named_parameters():
        table[part_of(name)]["trainable" if parameter.requires_grad else "frozen"] += parameter.numel()
    return table


def decays(network: nn.Module) -> set[str]:
    """The parameters that weight decay applies to: matrices and kernels, never biases, norms and embeddings."""
    kinds = (nn.Linear, nn.Conv2d)
    return {f"{path}.weight" for path, module in network.named_modules() if isinstance(module, kinds)}


def _idle_vision(network: LlavaForConditionalGeneration, last: int | None) -> tuple[str, ...]:
    """Vision parameters that are not trained: behind the projected layer, or before the `last` layers up to it."""
    config: Any = network.config
    tower = config.vision_config.num_hidden_layers
    used = tower + 1 + config.vision_feature_layer  # hidden layer 0 is the embeddings
    first = 0 if last is None else used - last
    if first < 0 or (last is not None and used == 0):
        raise BadInput(f"model.train.vision_layers: {last} are asked for, and {used} are used; write at most {used}")
    layers = [n for n in range(tower) if n >= used or n < first]
    names = [f"encoder.layers.{n}." for n in layers] + ["post_layernorm."]
    if last is not None:
        names += ["embeddings.", "pre_layrnorm."]
    if used == 0:
        names += ["embeddings.class_embedding"] if config.vision_feature_select_strategy == "default" else []
    return tuple(f"model.vision_tower.{name}" for name in names)


def _keep_frozen_in(network: nn.Module, kept: torch.dtype) -> None:
    """Only matrices and kernels: they are nearly all there is, and autocast brings them to the computation's type."""
    matrices = decays(network)
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad and name in matrices:
            parameter.data = parameter.data.to(kept)
