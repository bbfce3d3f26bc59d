"""Weights as names and sizes: what `named_parameters` of the real network would list."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple


class Weight(NamedTuple):
    """One parameter tensor."""

    name: str
    size: int
    linear: tuple[int, int] | None = None
    """(inputs, outputs) of the matrix of a linear layer: an adapter can stand beside it."""


Weights = Iterator[Weight]


def tensor(name: str, *shape: int) -> Weight:
    """A tensor that belongs to no linear layer."""
    return Weight(name, math.prod(shape))


def linear(layer: str, inputs: int, outputs: int, bias: bool = True) -> Weights:
    """The matrix of a linear layer, and its bias."""
    yield Weight(f"{layer}.weight", inputs * outputs, (inputs, outputs))
    if bias:
        yield tensor(f"{layer}.bias", outputs)


def norm(layer: str, width: int, bias: bool = True) -> Weights:
    """A layer norm, or without a bias an RMS norm."""
    yield tensor(f"{layer}.weight", width)
    if bias:
        yield tensor(f"{layer}.bias", width)
