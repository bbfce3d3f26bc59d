"""Quantised layers: frozen matrices in 4 bits beside the adapters that learn (QLoRA), through bitsandbytes.

All that such a layer keeps is a frozen parameter, so checkpoints, digests and ranks treat it as any other weight.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from mmjobs.model.sharded import shape
from mmlaunch.errors import BadInput

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on a CPU it regrets that there is no faster way
_BLOCK, _BLOCK_OF_SCALES = 64, 256
"""So many numbers share a scale, and so many scales share one in full precision."""
_ABSMAX = (".absmax", ".absmax_scale", ".absmax_offset")
_STANDS_FOR = "stands_for"
"""The attribute of a parameter that says how many numbers of the model it is."""


class QuantisedLinear(nn.Linear):
    """A linear layer whose matrix has 4 bits for each number; it is multiplied in the type of its input."""

    def __init__(self, inputs: int, outputs: int, bias: nn.Parameter | None) -> None:
        super().__init__(inputs, outputs, bias=False, device="meta")
        scales = -(-inputs * outputs // _BLOCK)
        self.bias = bias  # type: ignore[assignment]  # nn.Linear calls it a Tensor
        self.weight = _kept(torch.zeros(outputs, inputs // 2, dtype=torch.uint8), inputs * outputs)
        self.absmax = _kept(torch.zeros(scales, dtype=torch.uint8))
        # Bits of fp32: a model that is cast to half precision leaves integers alone.
        self.absmax_scale = _kept(torch.zeros(-(-scales // _BLOCK_OF_SCALES), dtype=torch.int32))
        self.absmax_offset = _kept(torch.zeros(1, dtype=torch.int32))

    @classmethod
    def of(cls, layer: nn.Linear) -> QuantisedLinear:
        """A layer with the matrix of another one, rounded; on a GPU, if there is one, since that takes seconds."""
        quantised = cls(layer.in_features, layer.out_features, layer.bias)
        where = torch.device("cuda") if torch.cuda.is_available() else layer.weight.device
        exact = layer.weight.detach().to(where, torch.float32)
        packed, state = _library().functional.quantize_4bit(
            exact, blocksize=_BLOCK, compress_statistics=True, quant_type="nf4"
        )
        quantised.weight.data = packed.view(layer.out_features, -1).to(layer.weight.device)
        quantised.absmax.data = state.absmax.to(layer.weight.device)
        quantised.absmax_scale.data = state.state2.absmax.view(torch.int32).to(layer.weight.device)
        quantised.absmax_offset.data = state.offset.reshape(1).view(torch.int32).to(layer.weight.device)
        return quantised

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        bias = None if self.bias is None else self.bias.to(input.dtype)
        output: torch.Tensor = _library().matmul_4bit(input, self.weight, self._state(input.dtype), bias=bias)
        return output

    def dense(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The matrix that it multiplies with."""
        matrix: torch.Tensor = _library().functional.dequantize_4bit(self.weight.view(-1, 1), self._state(dtype))
        return matrix

    def _state(self, dtype: torch.dtype) -> Any:
        functional, device = _library().functional, self.weight.device
        scales = functional.QuantState(
            self.absmax_scale.view(torch.float32), code=_code_of_scales(device), blocksize=_BLOCK_OF_SCALES,
            dtype=torch.float32,
        )  # fmt: skip
        return functional.QuantState(
            self.absmax, shape=torch.Size((self.out_features, self.in_features)), code=_code(device), blocksize=_BLOCK,
            quant_type="nf4", dtype=dtype, offset=self.absmax_offset.view(torch.float32)[0], state2=scales,
        )  # fmt: skip


def use(network: nn.Module, paths: Iterable[str], empty: bool = False) -> None:
    """Keep the matrices of these layers in 4 bits; `empty`: their values are loaded later."""
    if importlib.util.find_spec("bitsandbytes") is None:
        what = "model.lora.quantise needs bitsandbytes, and this machine has none"
        raise BadInput(f"{what}; install it there: pip install 'mmlaunch[qlora]'")
    for path in paths:
        parent, _, name = path.rpartition(".")
        layer: Any = network.get_submodule(path)
        if type(layer) is not nn.Linear or layer.in_features % 2:
            continue
        quantised = QuantisedLinear(layer.in_features, layer.out_features, layer.bias)
        setattr(network.get_submodule(parent), name, quantised if empty else QuantisedLinear.of(layer))


def undo(network: nn.Module) -> None:
    """Give every layer its matrix in full again, as it was rounded."""
    for path, layer in list(network.named_modules()):
        if isinstance(layer, QuantisedLinear):
            dense = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            dense.weight, dense.bias = nn.Parameter(layer.dense(), requires_grad=False), layer.bias
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, dense)


def dense_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Saved weights, with matrices in the place of those that were quantised."""
    plain = {name: value for name, value in state.items() if not name.endswith(_ABSMAX)}
    for name in state:
        if name.endswith(_ABSMAX[-1]):
            path = name.removesuffix(_ABSMAX[-1])
            outputs, half = state[f"{path}.weight"].shape
            layer = QuantisedLinear(2 * half, outputs, None)
            layer.load_state_dict({key: state[f"{path}.{key}"] for key in layer.state_dict()})
            plain[f"{path}.weight"] = layer.dense()
    return plain


def shape_of(network: nn.Module, name: str, value: torch.Tensor) -> torch.Size | None:
    """The shape that a weight has where nothing is quantised; None for what is there only because it is."""
    path, _, last = name.rpartition(".")
    layer = network.get_submodule(path)
    if not isinstance(layer, QuantisedLinear) or last == "bias":
        return shape(value)
    return torch.Size((layer.out_features, layer.in_features)) if last == "weight" else None


def numbers(parameter: torch.Tensor) -> int:
    """How many numbers of the model a parameter is: a byte of a quantised matrix is two, its scales are none."""
    count: int | None = getattr(parameter, _STANDS_FOR, None)
    return shape(parameter).numel() if count is None else count


def _kept(values: torch.Tensor, stands_for: int = 0) -> nn.Parameter:
    parameter = nn.Parameter(values, requires_grad=False)
    setattr(parameter, _STANDS_FOR, stands_for)
    return parameter


@cache
def _library() -> Any:
    import bitsandbytes  # only who quantises has it

    return bitsandbytes


@cache
def _code(device: torch.device) -> torch.Tensor:
    code: torch.Tensor = _library().functional.get_4bit_type("nf4", device=device)
    return code


@cache
def _code_of_scales(device: torch.device) -> torch.Tensor:
    code: torch.Tensor = _library().functional.create_dynamic_map().to(device)
    return code
