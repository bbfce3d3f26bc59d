"""Weights that are divided over the ranks as they are read (ZeRO-3), whole only where and while they are needed.

DeepSpeed leaves nothing in a divided parameter, and gives it methods of its own; who asks for its size asks here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

from mmjobs.rank.ranks import peers
from mmlaunch.errors import BadInput

T = TypeVar("T")
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


class Reader:
    """Reads weights for a network: each rank for itself, or, where they are divided, the first rank for all.

    So no machine holds all weights once for each of its GPUs.
    """

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        self._for_all = any(_is_divided(value) for value in weights)
        self.reads = not self._for_all or dist.get_rank() == 0

    @contextmanager
    def reading(self) -> Iterator[bool]:
        """In this context weights are read, where it gives True. A `BadInput` there is raised on all ranks."""
        draws = torch.random.fork_rng(devices=()) if self._for_all else nullcontext()
        try:
            with draws:  # the ranks that read nothing draw nothing
                yield self.reads
        except BadInput as error:
            self.agree(error)
            raise
        self.agree(None)

    def agree(self, value: T) -> T:
        """What the rank that reads says of the weights; an error is raised on the others."""
        if not self._for_all:
            return value
        box: list[Any] = [value]
        with peers():
            dist.broadcast_object_list(box, src=0)
        if isinstance(box[0], BadInput) and not self.reads:
            raise box[0]
        first: T = box[0]
        return first

    def broadcast(self, value: torch.Tensor) -> None:
        """Give all ranks a weight that is whole, and that the rank which reads has filled."""
        if self._for_all:
            with peers():
                dist.broadcast(value.data, src=0)


def share(
    weights: Mapping[str, torch.Tensor], rank: int, savers: int, each: Callable[[], None]
) -> dict[str, torch.Tensor]:
    """What a rank saves of some weights: the first `savers` ranks save equal shares. All ranks together.

    None ever has more than its share and one weight that is whole. `each` is called before every weight.
    """
    own: dict[str, torch.Tensor] = {}
    pointers, sizes = set[int](), [0] * savers
    for name, value in weights.items():
        each()
        saver = sizes.index(min(sizes))
        sizes[saver] += shape(value).numel() * value.element_size()
        with whole([value] if isinstance(value, nn.Parameter) else ()):
            if rank != saver:
                continue
            own[name] = value.detach().cpu().contiguous()
            if _is_divided(value) or own[name].data_ptr() in pointers:  # tied weights: each name has its own copy
                own[name] = own[name].clone()
            pointers.add(own[name].data_ptr())
    return own


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
    """Cast a parameter to another type; integers stay what they are."""
    if not parameter.is_floating_point():
        return
    parameter.data = parameter.data.to(dtype)
    share = getattr(parameter, "ds_tensor", None)
    if share is not None:
        share.data = share.data.to(dtype)


def _is_divided(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "ds_tensor")
