"""Objectives of the user's own: a class in a plugin, and checks that name it where it breaks the protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import nn

from mmjobs.data.batch import Batch
from mmjobs.objectives.objective import ObjectiveOutput, Reference, Statistics, Units
from mmlaunch.errors import BadInput, PluginFailed
from mmlaunch.recipe.custom import Custom as Settings
from mmlaunch.run import plugins

_SAME = 1e-3
_STATEFUL = ("state", "restore", "update")
_RIGHT = "return ObjectiveOutput(losses={unit: sum}, example_losses=..., metrics={name: (sum, count)})"


def custom(settings: Settings, reference: Reference | None) -> CustomObjective:
    """The objective that a recipe names; one that remembers something has its state in checkpoints."""
    plugin, name = settings.plugin, settings.plugin.written
    kind = plugins.load(plugin.file, plugin.module, plugin.name)
    if not callable(kind):
        raise PluginFailed(f"{name} is no class; write class {plugin.name}")
    with plugins.named(name, kind):
        own = kind(settings, _always(reference) if settings.uses_reference else None)
    remembers = [method for method in _STATEFUL if callable(getattr(own, method, None))]
    if remembers and len(remembers) < len(_STATEFUL):
        missing = next(method for method in _STATEFUL if method not in remembers)
        raise PluginFailed(
            f"{name} has {' and '.join(remembers)}, but no {missing}; write {', '.join(_STATEFUL)}, or none"
        )
    return (StatefulCustomObjective if remembers else CustomObjective)(own, settings)


def _always(reference: Reference | None) -> Reference:
    """The reference's log-probabilities, from the batch where they were computed before the first step."""

    def log_probs(network: nn.Module, batch: Batch) -> torch.Tensor:
        if batch.reference is not None:
            return batch.reference
        if reference is None:  # a batch without examples
            return torch.zeros(len(batch.loss_places), device=batch.ids.device)
        return reference(network, batch)

    return log_probs


class CustomObjective:
    """What it computes is its own; what it returns is checked, without waiting for the device."""

    def __init__(self, own: Any, settings: Settings) -> None:
        self._own, self._name = own, settings.plugin.written
        for method in ("units", "__call__"):
            if not callable(getattr(own, method, None)):
                arguments = "self, batch" if method == "units" else "self, network, batch"
                raise PluginFailed(f"{self._name} has no {method}; write def {method}({arguments})")
        self.over = self._names("over")
        if not self.over:
            raise PluginFailed(
                f'{self._name}: over is empty; name what its losses are averaged over: over = ("tokens",)'
            )
        self.metrics = self._names("metrics")
        self._looks_at_first = len(self.over) == 1
        self.needs_global_batch = bool(getattr(own, "needs_global_batch", False))
        listed = [metric for metric in settings.metrics if metric not in self.metrics]
        if listed and not hasattr(own, "summary"):
            known = ", ".join(self.metrics) or "nothing"
            raise BadInput(f"objective.metrics lists {listed[0]}, and {self._name} measures {known} beside its loss")

    def _names(self, attribute: str) -> tuple[str, ...]:
        names = getattr(self._own, attribute, None)
        if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
            example = '("tokens",)' if attribute == "over" else '("accuracy",), or ()'
            right = f"write {attribute} = {example}"
            raise PluginFailed(f"{self._name}: {attribute} is {names!r}, and no tuple of names; {right}")
        return tuple(names)

    def units(self, batch: Batch) -> Units:
        with plugins.named(self._name, self._own):
            units = self._own.units(batch)
        if not isinstance(units, Mapping) or set(units) != set(self.over):
            self._refuse("units", units, f"return a number for each of {', '.join(self.over)}, in a dict")
        with plugins.named(self._name, self._own):
            return {unit: float(units[unit]) for unit in self.over}

    def __call__(self, network: nn.Module, batch: Batch) -> ObjectiveOutput:
        with plugins.named(self._name, self._own):
            output = self._own(network, batch)
        if not isinstance(output, ObjectiveOutput):
            self._refuse("__call__", output, _RIGHT)
        if set(output.losses) != set(self.over):
            self._refuse("losses", output.losses, f"return one sum for each of {', '.join(self.over)}")
        if set(output.metrics) != set(self.metrics):
            self._refuse("metrics", output.metrics, f"return {', '.join(self.metrics) or 'none'}, as the class says")
        for unit, loss in output.losses.items():
            if not _is_number(loss):
                self._refuse(f"losses[{unit!r}]", loss, "return the sum over the batch, a tensor without dimensions")
            if torch.is_grad_enabled() and not loss.requires_grad:
                self._refuse(f"losses[{unit!r}]", loss, "it has no gradient: do not detach it")
        if not isinstance(output.example_losses, torch.Tensor) or output.example_losses.shape != (len(batch),):
            right = f"return one for each of the {len(batch)} examples: by_example(losses.detach(), batch)"
            self._refuse("example_losses", output.example_losses, right)
        for metric, value in output.metrics.items():
            if not (isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))):
                self._refuse(f"metrics[{metric!r}]", value, "return a sum and its count, tensors without dimensions")
        if self._looks_at_first and len(batch) > 1:
            self._looks_at_first = False
            self._refuse_means(batch, output)
        measured = {metric: (total.detach(), count.detach()) for metric, (total, count) in output.metrics.items()}
        return replace(output, example_losses=output.example_losses.detach(), metrics=measured)

    def _refuse_means(self, batch: Batch, output: ObjectiveOutput) -> None:
        """A loss that is what its examples add up to, divided by the units, was divided already."""
        loss, whole = float(output.loss), float(output.example_losses.double().sum())
        for what, count in {**self.units(batch), "examples": float(len(batch))}.items():
            if count > 1 and whole and abs(loss * count - whole) < _SAME * abs(whole):
                right = "return the sum: the learner divides by the units of the whole global batch"
                raise PluginFailed(f"{self._name}: the loss is a mean over {what} ({loss:.4g} of {whole:.4g}); {right}")

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        if not hasattr(self._own, "summary"):
            return means
        with plugins.named(self._name, self._own):
            shown = self._own.summary(means)
        if not isinstance(shown, dict) or "loss" not in shown:
            self._refuse("summary", shown, "return the means that are shown, loss among them")
        return dict(shown)

    def statistics(self, network: nn.Module, batch: Batch) -> Statistics:
        with plugins.named(self._name, self._own):
            statistics: Statistics = self._own.statistics(network, batch)
        return statistics

    def set_global_batch(self, statistics: Sequence[Sequence[Statistics]], rank: int) -> None:
        with plugins.named(self._name, self._own):
            self._own.set_global_batch(statistics, rank)

    def _refuse(self, what: str, value: Any, right: str) -> NoReturn:
        raise PluginFailed(f"{self._name}: {what} is {_shown(value)}; {right}")


class StatefulCustomObjective(CustomObjective):
    """One that remembers something from step to step. Of others nobody reads sums after every step."""

    def state(self) -> dict[str, Any]:
        with plugins.named(self._name, self._own):
            state = self._own.state()
        try:
            kept: dict[str, Any] = dict(json.loads(json.dumps(state)))
        except (TypeError, ValueError):
            self._refuse("state", state, "return a dict of what JSON can hold: numbers, texts, lists")
        return kept

    def restore(self, state: dict[str, Any]) -> None:
        if not state:  # the run has gone on with this objective, after one that remembered nothing
            return
        with plugins.named(self._name, self._own):
            self._own.restore(state)

    def update(self, sums: dict[str, tuple[float, float]]) -> None:
        with plugins.named(self._name, self._own):
            self._own.update(sums)


def _is_number(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.shape


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(map(str, value)) or 'nothing'}"
    return f"a {type(value).__name__}" if value is not None else "None"
