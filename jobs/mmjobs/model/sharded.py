"""Weights that are divided over the ranks as they are read (ZeRO-3), whole only where and while they are needed.

DeepSpeed leaves nothing in a divided parameter, and gives it methods of its own; who asks for its size asks here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

_given: list[HfDeepSpeedConfig] = []


@contextmanager
def reading(settings: dict[str, Any]) -> Iterator[None]:
    """At ZeRO stage 3, transformers divides what it reads: rank 0 reads a tensor, and each rank keeps its share.

    So no machine ever holds the weights once for each of its GPUs.
    """
    if settings["zero_optimization"]["stage"] != 3:
        yield
        return
    given = HfDeepSpeedConfig(settings)
    _given.append(given)  # transformers itself does not keep it
    try:
        yield
    finally:
        _given.remove(given)
        unset_hf_deepspeed_config()


@contextmanager
def undivided() -> Iterator[None]:
    """In this context weights stay whole: for models that are read and dropped again."""
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        for given in _given:
            set_hf_deepspeed_config(given)


@contextmanager
def whole(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """In this context these parameters are whole on all ranks; changes that all ranks make in the same way are kept."""
    divided: list[Any] = [parameter for parameter in parameters if _is_divided(parameter)]
    if divided:
        divided[0].all_gather(param_list=divided)
    try:
        yield
    finally:
        if divided:
            divided[0].partition(param_list=divided, has_been_updated=True)


def divide(module: nn.Module) -> None:
    """Divide parameters that were added to a divided network, such as an embedding with more rows."""
    parameters: list[Any] = list(module.parameters())
    divided = [parameter for parameter in parameters if _is_divided(parameter)]
    new = [parameter for parameter in parameters if not _is_divided(parameter)]
    if divided and new:
        divided[0].convert_to_zero_parameters(param_list=new)


def shape(value: torch.Tensor) -> torch.Size:
    """The shape of the whole parameter."""
    found: torch.Size = getattr(value, "ds_shape", value.shape)
    return found


def own(parameter: nn.Parameter) -> torch.Tensor:
    """The part of a parameter that this rank has."""
    share: torch.Tensor | None = getattr(parameter, "ds_tensor", None)
    return parameter if share is None else share


def cast(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    """Cast a parameter to another type."""
    parameter.data = parameter.data.to(dtype)
    share = getattr(parameter, "ds_tensor", None)
    if share is not None:
        share.data = share.data.to(dtype)


def _is_divided(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_tensor")
