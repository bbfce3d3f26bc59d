"""Served weights: a network as a Hugging Face folder from which an engine reads it, again and again.

Tensors are gathered, merged with their adapters and written one by one; no machine holds the model once more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from mmjobs.model import adapters, llava, parts, quantised, sharded
from mmjobs.model.build import BuiltModel
from mmjobs.model.checksum import checksum
from mmlaunch.errors import BadInput
from mmlaunch.run.files import publish
from mmlaunch.run.paths import SERVED

_INDEX = "model.safetensors.index.json"
_LARGEST = 2 << 30
"""Bytes of a file, and so of what is in memory at a time."""


def introduce(built: BuiltModel, precision: str, folder: Path) -> None:
    """Write everything but the weights: configuration, tokenizer, processor."""
    network: Any = built.network
    if isinstance(network, llava.Assembled):
        what = "no engine knows a model with this projector or this attention"
        raise BadInput(f"objective.engine: {what}; remove engine: the trainer then generates the answers itself")
    folder.mkdir(parents=True, exist_ok=True)
    config = network.config.__class__.from_dict(network.config.to_dict())
    config.architectures, config.dtype = [type(network).__name__], parts.TYPES[precision]
    config.save_pretrained(folder)
    network.generation_config.save_pretrained(folder)
    built.processor.save_pretrained(folder)


class Served:
    """The weights of one network under the names and in the type that an engine reads; all ranks write together."""

    def __init__(self, network: nn.Module, precision: str, folder: Path, writes: bool) -> None:
        """`writes`: whether this is the rank that has the files; the others take part in gathering."""
        self._network, self._dtype, self._folder, self._writes = network, parts.TYPES[precision], folder, writes
        self._names = _names(network)

    def write(self, version: str, moved: Callable[[], None]) -> dict[str, list[int]]:
        """Replace the weights in the folder; the checksum of each tensor, on the rank that writes. `moved` tells
        progress."""
        checksums: dict[str, list[int]] = {}
        files: list[str] = []
        places: dict[str, str] = {}
        shard: dict[str, torch.Tensor] = {}

        def flush() -> None:
            files.append(f"model-{len(files) + 1:05d}.safetensors")
            places.update(dict.fromkeys(shard, files[-1]))
            partial = self._folder / f".{files[-1]}.tmp"
            safetensors.torch.save_file(shard, partial, metadata={"format": "pt"})
            partial.replace(self._folder / files[-1])
            shard.clear()

        for name, tensor in self._tensors(moved):
            checksums[name] = list(checksum(tensor))
            shard[name] = tensor.cpu().contiguous()
            if sum(one.nbytes for one in shard.values()) >= _LARGEST:
                flush()
        if not self._writes:
            return {}
        flush()
        publish(self._folder / _INDEX, json.dumps({"metadata": {}, "weight_map": places}))
        publish(self._folder / SERVED, json.dumps({"version": version, "files": files, "checksums": checksums}))
        return checksums

    def _tensors(self, moved: Callable[[], None]) -> Iterator[tuple[str, torch.Tensor]]:
        """Each weight, merged with its adapter; nothing on the ranks that do not write."""
        for name, served in self._names.items():
            path, _, last = name.rpartition(".")
            module = self._network.get_submodule(path)
            with sharded.whole(module.parameters(recurse=adapters.adapted(module))), torch.no_grad():
                moved()
                if self._writes:
                    value = adapters.merged(module, last)
                    yield served, value.detach().to(self._dtype if value.is_floating_point() else value.dtype)


def _names(network: Any) -> dict[str, str]:
    """The name of each weight without its adapter, and the name that a saved model has for it."""
    plain: dict[str, torch.Tensor] = {}
    for name, value in [*network.named_parameters(), *_kept_buffers(network)]:
        size = quantised.shape_of(network, name, value)
        if parts.ADAPTER not in name and size is not None:
            plain[name.replace(".base_layer.", ".")] = torch.empty(size, device="meta")
    numbers = {id(value): name for name, value in plain.items()}
    saved = {numbers.get(id(value)): name for name, value in revert_weight_conversion(network, plain).items()}
    if set(saved) != set(plain):
        what = "this model's files hold its weights in another form than the network"
        raise BadInput(f"objective.engine: {what}; remove engine: the trainer then generates the answers itself")
    return {str(name): saved_name for name, saved_name in saved.items()}


def _kept_buffers(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    saved = network.state_dict(keep_vars=True)
    return ((name, value) for name, value in network.named_buffers() if name in saved)
