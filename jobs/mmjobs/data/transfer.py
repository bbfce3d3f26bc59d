"""How a data worker sends a batch to its rank: all tensors in one piece of shared memory.

torch sends each tensor by itself, and its rank fetches each over a connection of its own: for a batch of twenty small
tensors that takes as long as a step of a small model.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

ALIGNED = 64
"""Each tensor begins at a multiple of so many bytes."""


@dataclass(frozen=True)
class Parcel:
    """Any value, without its tensors, and the bytes of these."""

    value: bytes
    tensors: torch.Tensor

    def open(self) -> Any:
        return _Unpickler(self.value, self.tensors).load()


@dataclass(frozen=True)
class Packing:
    """A function whose results are packed."""

    make: Callable[[Any], Any]

    def __call__(self, given: Any) -> Parcel:
        pickler = _Pickler()
        pickler.dump(self.make(given))
        tensors = torch.empty(pickler.size, dtype=torch.uint8)
        for start, tensor in pickler.places:
            tensors[start : start + tensor.nbytes] = tensor.reshape(-1).view(torch.uint8)
        return Parcel(pickler.written.getvalue(), tensors)


class _Pickler(pickle.Pickler):
    """Writes where a tensor lies in the place of the tensor."""

    def __init__(self) -> None:
        self.written, self.size = io.BytesIO(), 0
        self.places: list[tuple[int, torch.Tensor]] = []
        super().__init__(self.written, protocol=pickle.HIGHEST_PROTOCOL)

    def persistent_id(self, value: object) -> object:
        if type(value) is not torch.Tensor:
            return None
        start, value = self.size, value.contiguous()
        self.places.append((start, value))
        self.size += -(-value.nbytes // ALIGNED) * ALIGNED
        return start, value.nbytes, value.dtype, tuple(value.shape)


class _Unpickler(pickle.Unpickler):
    def __init__(self, value: bytes, tensors: torch.Tensor) -> None:
        self._tensors = tensors
        super().__init__(io.BytesIO(value))

    def persistent_load(self, place: Any) -> torch.Tensor:
        start, size, dtype, shape = place
        return self._tensors[start : start + size].view(dtype).reshape(shape).clone()  # one kept would keep all
