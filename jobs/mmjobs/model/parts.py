"""The parts of a model: which parameter belongs to which, what is trained, in which type the rest is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmjobs.model.quantised import numbers
from mmjobs.model.sharded import cast
from mmlaunch.errors import BadInput
from mmlaunch.recipe.model import Model
from mmlaunch.recipe.parts import PARTS, frozen_vision, part_of, too_many_vision_layers, training_of

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ADAPTER = "lora_"


def dtype_of(part: str, model: Model, precision: str) -> torch.dtype:
    """The type that a part is loaded in: what is trained as a whole keeps all its digits."""
    return torch.float32 if training_of(part, model) == "full" else _kept(model, precision)


def freeze(network: nn.Module, model: Model, precision: str) -> None:
    """Leave a gradient only to what the recipe trains and something reads, and keep the rest in its own type."""
    training = {part: training_of(part, model) for part in PARTS}
    idle = idle_vision(network, model.train.vision_layers)
    for name, parameter in network.named_parameters():
        part = part_of(name)
        wanted = ADAPTER in name if training[part] == "lora" else training[part] == "full" and not name.startswith(idle)
        parameter.requires_grad_(wanted)
        if wanted:
            cast(parameter, torch.float32)
    kept = _kept(model, precision)
    if kept != torch.float32:
        _keep_frozen_in(network, kept)


def counts(network: nn.Module) -> dict[str, dict[str, int]]:
    """Trainable and frozen parameters of each part."""
    table = {part: {"trainable": 0, "frozen": 0} for part in PARTS}
    for name, parameter in network.named_parameters():
        table[part_of(name)]["trainable" if parameter.requires_grad else "frozen"] += numbers(parameter)
    return {part: numbers for part, numbers in table.items() if any(numbers.values())}


def decays(network: nn.Module) -> set[str]:
    """The parameters that weight decay applies to: matrices and kernels, never biases, norms and embeddings."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    return {f"{path}.weight" for path, module in network.named_modules() if isinstance(module, kinds)}


def has_dropout(network: nn.Module) -> bool:
    """Whether a network has dropout: in training, each forward of the same batch is then a different one."""
    shares = ((getattr(module, "attention_dropout", 0), module) for module in network.modules())
    return any(share or (isinstance(module, nn.Dropout) and module.p) for share, module in shares)


def _kept(model: Model, precision: str) -> torch.dtype:
    return TYPES[precision if model.weights == "auto" else model.weights]


def idle_vision(network: Any, last: int | None) -> tuple[str, ...]:
    """Vision parameters that are not trained: behind the projected layer, or before the `last` layers up to it."""
    config = network.config
    tower = getattr(getattr(network, "model", None), "vision_tower", None)
    if not hasattr(getattr(tower, "encoder", None), "layers") or not isinstance(
        getattr(config, "vision_feature_layer", None), int
    ):
        if last is not None:
            raise BadInput("model.train.vision_layers: only models with a CLIP encoder know it; remove it")
        return ()
    layers = config.vision_config.num_hidden_layers
    used = layers + 1 + config.vision_feature_layer  # hidden layer 0 is the embeddings
    if mistake := too_many_vision_layers(used, last):
        raise BadInput(mistake)
    return frozen_vision(layers, used, last, class_token=config.vision_feature_select_strategy != "default")


def _keep_frozen_in(network: nn.Module, kept: torch.dtype) -> None:
    """Only matrices and kernels: they are nearly all there is, and autocast brings them to the computation's type."""
    matrices = decays(network)
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad and name in matrices:
            cast(parameter, kept)
