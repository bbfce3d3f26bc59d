"""Adapters: low-rank additions to the layers of a part, through peft; merged into the weights for an export."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from mmjobs.model import quantised
from mmjobs.model.parts import ADAPTER, idle_vision
from mmjobs.model.sharded import whole
from mmjobs.rank.imports import as_if_missing
from mmlaunch.errors import BadInput
from mmlaunch.recipe.model import Lora, Model
from mmlaunch.recipe.parts import ADAPTED, part_of, training_of

with as_if_missing("bitsandbytes"):  # peft has layers of its own for it, and would import it on every rank
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear, LoraLayer

_NAME = "default"
FOLDER = "adapter"
"""The folder of an export that holds them."""
_FILE, _PREFIX, _DOWN = "adapter_model.safetensors", "base_model.model.", ".lora_A.weight"  # peft's names


def add(network: nn.Module, model: Model, empty: bool = False) -> None:
    """Add an adapter to every layer that the recipe names; at first it adds nothing.

    `empty`: the weights of the network are loaded later.
    """
    if model.lora is None:
        return
    if model.lora.quantise != "none":
        quantised.use(network, _linear(network, model), empty)
    layers = _targets(network, model, model.lora)
    inject_adapter_in_model(_config(model.lora, layers), network, adapter_name=_NAME)
    for layer in _layers(network).values():
        if type(layer) is Linear and not layer.lora_variant:
            layer.__class__ = _Adapted  # in their places: hooks and names stay
            layer.lora_B[_NAME].__class__ = _Onto


class _Onto(nn.Linear):
    """The second matrix of an adapter, which adds to the output of the layer beside it."""

    def forward(self, input: torch.Tensor, found: torch.Tensor | None = None) -> torch.Tensor:
        if found is None:
            return super().forward(input)
        rows, low = (states.reshape(-1, states.shape[-1]) for states in (found, input))
        return torch.addmm(rows, low, self.weight.T).view(found.shape)


class _Adapted(Linear):
    """peft's layer, which scales while there are few numbers, and adds without another tensor as large as its result.

    On narrow models that is a fifth of a step.
    """

    def forward(self, x: torch.Tensor, *args: Any, **named: Any) -> Any:
        if self.disable_adapters or self.merged or args or named:
            return super().forward(x, *args, **named)
        low = self.lora_A[_NAME](self.lora_dropout[_NAME](x)) * self.scaling[_NAME]
        return self.lora_B[_NAME](low, self.base_layer(x))


def merge(network: nn.Module) -> None:
    """Merge the adapters of a network into its weights, and remove them."""
    quantised.undo(network)
    for layer in _layers(network).values():
        layer.merge(safe_merge=True)
    detach(network)


def detach(network: nn.Module) -> None:
    """Remove the adapters; what was not merged is lost."""
    for path, layer in _layers(network).items():
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, layer.get_base_layer())
    quantised.undo(network)
    if hasattr(network, "peft_config"):
        del network.peft_config


@contextmanager
def off(network: nn.Module) -> Iterator[None]:
    """In this context the network computes without its adapters."""
    layers = list(_layers(network).values())
    for layer in layers:
        layer._disable_adapters = True  # peft's own switch would also decide what has a gradient
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def save(network: nn.Module, lora: Lora, folder: Path, base: str) -> None:
    """Save the adapter alone, as peft's `PeftModel.from_pretrained` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(lora, list(_layers(network)))
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(str(folder))
    state: dict[str, torch.Tensor] = {}
    for name, value in network.state_dict().items():
        if ADAPTER in name:
            state[f"{_PREFIX}{name.replace(f'.{_NAME}', '')}"] = value.detach().contiguous()
    safetensors.torch.save_file(state, folder / _FILE, metadata={"format": "pt"})


def add_saved(network: nn.Module, export: Path) -> None:
    """Merge the adapter that stands beside the weights of an export, if there is one."""
    folder = export / FOLDER
    if not (folder / _FILE).is_file():
        return
    config = LoraConfig.from_pretrained(str(folder))
    scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    state = safetensors.torch.load_file(folder / _FILE)
    for key, down in state.items():
        if key.endswith(_DOWN):
            layer = key.removesuffix(_DOWN)
            weight = network.get_parameter(f"{layer.removeprefix(_PREFIX)}.weight")
            up, length = state[f"{layer}.lora_B.weight"], state.get(f"{layer}.lora_magnitude_vector.weight")
            with whole([weight]), torch.no_grad():
                weight.copy_(together(weight, down, up, scale, length))


def together(
    weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float, length: torch.Tensor | None
) -> torch.Tensor:
    """A matrix with its adapter merged; DoRA learns the length of each row separately from its direction."""
    new = weight.float() + scale * (up.float() @ down.float())
    if length is not None:
        new = new * (length.float() / new.norm(dim=1))[:, None]
    return new.to(weight.dtype)


def adapted(module: nn.Module) -> bool:
    """Whether a layer has an adapter."""
    return isinstance(module, LoraLayer)


def merged(module: nn.Module, name: str) -> torch.Tensor:
    """A tensor of a layer, its matrix with its adapter; the layer stays as it is, and must be whole."""
    base: Any = module.get_base_layer() if isinstance(module, LoraLayer) else module
    dense = name == "weight" and isinstance(base, quantised.QuantisedLinear)
    value: torch.Tensor = base.dense() if dense else getattr(base, name)
    if name != "weight" or base is module:
        return value
    layer: Any = module
    down, up = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
    lengths = layer.lora_magnitude_vector
    return together(value, down, up, layer.scaling[_NAME], lengths[_NAME].weight if _NAME in lengths else None)


def _layers(network: nn.Module) -> dict[str, LoraLayer]:
    return {path: module for path, module in network.named_modules() if isinstance(module, LoraLayer)}


def _config(lora: Lora, layers: list[str]) -> LoraConfig:
    return LoraConfig(
        r=lora.rank,
        lora_alpha=_whole(lora.alpha),
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=layers,
    )


def _targets(network: nn.Module, model: Model, lora: Lora) -> list[str]:
    """The linear layers of the parts that are trained with LoRA, as `lora.targets` selects them."""
    linear = _linear(network, model)
    if lora.targets == "all-linear":
        return linear
    chosen = [path for path in linear if re.search(lora.targets, path)]
    if not chosen:
        some = ", ".join(sorted({path.rpartition(".")[2] for path in linear}))
        raise BadInput(
            f"model.lora.targets: {lora.targets!r} fits none of the linear layers; their names end in {some}"
        )
    return chosen


def _linear(network: nn.Module, model: Model) -> list[str]:
    """All linear layers of the parts that are trained with LoRA."""
    wanted = {part for part in ADAPTED if training_of(part, model) == "lora"}
    idle = idle_vision(network, model.train.vision_layers)
    return [
        path
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and part_of(f"{path}.weight") in wanted and not path.startswith(idle)
    ]


def _whole(number: float) -> Any:
    return int(number) if number == int(number) else number
