"""Parameters of each part: how many there are, how many learn, and how many adapters add."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mmlaunch.errors import UserError
from mmlaunch.estimate.shapes.network import Network
from mmlaunch.estimate.shapes.weights import Weight
from mmlaunch.recipe.model import Lora, Model
from mmlaunch.recipe.parts import ADAPTED, PARTS, frozen_vision, part_of, too_many_vision_layers, training_of


@dataclass(frozen=True)
class Part:
    """One row of the parameter table."""

    name: str
    total: int
    trained: int


@dataclass(frozen=True)
class Counts:
    """The parameter table; adapters count with the part that they stand in."""

    parts: tuple[Part, ...]
    quantised: int = 0
    """The frozen numbers that are kept in 4 bits."""

    @property
    def total(self) -> int:
        return sum(part.total for part in self.parts)

    @property
    def trained(self) -> int:
        return sum(part.trained for part in self.parts)

    @property
    def frozen(self) -> int:
        return self.total - self.trained

    def trains(self, name: str) -> bool:
        """Whether anything of a part learns."""
        return any(part.trained for part in self.parts if part.name == name)


def counts(network: Network, model: Model) -> Counts:
    """The table of a recipe's model."""
    training = {part: training_of(part, model) for part in PARTS}
    frozen = _frozen_vision(network, model.train.vision_layers)
    totals, trained = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for weight in network.weights:
        part = part_of(weight.name)
        totals[part] += weight.size
        if training[part] == "full" and not weight.name.startswith(frozen):
            trained[part] += weight.size
    for part, size in _adapters(network, model):
        totals[part] += size
        trained[part] += size
    parts = tuple(Part(part, totals[part], trained[part]) for part in PARTS if totals[part])
    return Counts(parts, sum(weight.size for weight in _quantised(network, model)))


def lora_sizes(weights: tuple[Weight, ...], lora: Lora, parts: frozenset[str]) -> Iterator[tuple[str, int]]:
    """(part, parameters) of the adapter beside each linear layer of these parts that `lora.targets` means."""
    for weight in weights:
        part = part_of(weight.name)
        if weight.linear is None or part not in parts:
            continue
        if lora.targets == "all-linear" or re.search(lora.targets, weight.name.removesuffix(".weight")):
            inputs, outputs = weight.linear
            yield part, lora.rank * (inputs + outputs) + (outputs if lora.dora else 0)


def _quantised(network: Network, model: Model) -> Iterator[Weight]:
    """The matrices that are kept in 4 bits: those of every linear layer that an adapter can stand beside."""
    if model.lora is None or model.lora.quantise == "none":
        return
    parts = frozenset(part for part in ADAPTED if training_of(part, model) == "lora")
    frozen = _frozen_vision(network, model.train.vision_layers)
    for weight in network.weights:
        even = weight.linear is not None and weight.linear[0] % 2 == 0
        if even and part_of(weight.name) in parts and not weight.name.startswith(frozen):
            yield weight


def _adapters(network: Network, model: Model) -> list[tuple[str, int]]:
    if model.lora is None:
        return []
    parts = frozenset(part for part in ADAPTED if training_of(part, model) == "lora")
    frozen = _frozen_vision(network, model.train.vision_layers)
    weights = tuple(weight for weight in network.weights if not weight.name.startswith(frozen))
    found = [*lora_sizes(weights, model.lora, parts)]
    if not found:
        ends = {w.name.split(".")[-2] for w in network.weights if w.linear and part_of(w.name) in parts}
        what = f"{model.lora.targets!r} fits none of the linear layers"
        raise UserError(f"model.lora.targets: {what}; their names end in {', '.join(sorted(ends))}")
    return found


def _frozen_vision(network: Network, last: int | None) -> tuple[str, ...]:
    """The beginnings of the names of vision parameters that are never trained."""
    if network.used is None or network.vision is None:
        if last is not None:
            raise UserError("model.train.vision_layers: only models with a CLIP encoder know it; remove it")
        return ()
    if mistake := too_many_vision_layers(network.used, last):
        raise UserError(mistake)
    return frozen_vision(network.vision.layers, network.used, last, network.class_token)
