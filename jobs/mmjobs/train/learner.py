"""Learners: how the micro-batches of a step become an update of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from mmjobs.checkpoint.saveable import Engines
from mmjobs.checkpoint.train_state import MODEL
from mmjobs.data.batch import Batch
from mmjobs.engine.engine import Engine
from mmjobs.engine.reference_copy import ReferenceCopy
from mmjobs.metrics.totals import Totals, summary
from mmjobs.objectives.objective import NeedsGlobalBatch, Objective, ObjectiveOutput, Stateful, Units
from mmjobs.rank.ranks import Ranks
from mmlaunch.errors import BadInput


@dataclass(frozen=True)
class StepResult:
    """What one step did. What would need the other ranks, or wait for the device, is computed when it is asked for."""

    lr: float
    grad_norm: float
    """The same on all ranks; one that is not finite has changed no weight."""
    rescaled: bool
    """Whether half precision only overflowed: the next losses are scaled less."""
    loss_is_finite: bool
    """On this rank."""
    metrics: Callable[[], dict[str, float]]
    """`loss` and the other means over the global batch; all ranks call it together."""
    bad_samples: Callable[[], list[str]]
    """The examples of this rank whose loss is not finite."""


class Learner(Protocol):
    """One or several engines, and what they minimise."""

    @property
    def engines(self) -> Engines:
        """What a checkpoint holds, by name."""

    def step(self, batches: Sequence[Batch], step: int) -> StepResult:
        """One update of the weights; `step` counts from 0. All ranks together."""

    def weights_are_finite(self) -> bool:
        """Whether all weights that this rank has are finite numbers."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the engines; equal on all ranks, and JSON can hold it."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where that state was taken; the engines are loaded already."""


class ObjectiveLearner:
    """One engine and one objective: supervised fine-tuning, reward models, preferences."""

    def __init__(
        self, engine: Engine, objective: Objective, ranks: Ranks, reference: ReferenceCopy | None = None
    ) -> None:
        """`reference`: the copy that follows the policy, if one does."""
        self.engine, self.objective = engine, objective
        self._ranks, self._reference = ranks, reference

    @property
    def engines(self) -> Engines:
        return {MODEL: self.engine, **({"reference": self._reference} if self._reference else {})}

    def step(self, batches: Sequence[Batch], step: int) -> StepResult:
        own = [self.objective.units(batch) for batch in batches]
        units = self._global_units(own, step)
        share_statistics(self.objective, self.engine, self._ranks, batches, dropout=True)
        outputs = self.engine.accumulate(batches, self.objective, units)
        totals = Totals(self.objective)
        for output, count in zip(outputs, own, strict=True):
            totals.add(output, count)
        finite = totals.loss_is_finite()
        update = self.engine.step(step)
        if math.isfinite(update.norm):
            self._after_update(totals, step + 1)
        return StepResult(
            lr=update.lr,
            grad_norm=update.norm,
            rescaled=update.rescaled,
            loss_is_finite=finite,
            metrics=lambda: self._means(totals),
            bad_samples=lambda: _not_finite(batches, outputs),
        )

    def _global_units(self, own: Sequence[Units], step: int) -> Units:
        """The units of the global batch, by which loss sums are divided."""
        counts = self._ranks.sums(*(sum(units[unit] for units in own) for unit in self.objective.over))
        if not any(counts):
            raise BadInput(f"no example of step {step + 1} can be used; see data/skipped.jsonl in the run directory")
        return dict(zip(self.objective.over, counts, strict=True))

    def _after_update(self, totals: Totals, finished: int) -> None:
        """What follows the weights: a reference that is synced, and what the objective remembers."""
        if self._reference is not None:
            self._reference.follow(self.engine.network, finished)
        if isinstance(self.objective, Stateful):
            totals.reduce(self._ranks)
            self.objective.update(totals.sums())

    def _means(self, totals: Totals) -> dict[str, float]:
        totals.reduce(self._ranks)
        return summary(self.objective, totals.means())

    def weights_are_finite(self) -> bool:
        return self.engine.is_finite()

    def state(self) -> dict[str, Any]:
        return self.objective.state() if isinstance(self.objective, Stateful) else {}

    def restore(self, state: dict[str, Any]) -> None:
        if isinstance(self.objective, Stateful):
            self.objective.restore(state)


def share_statistics(
    objective: Objective, engine: Engine, ranks: Ranks, batches: Iterable[Batch], dropout: bool = False
) -> None:
    """Tell an objective about the global batch, where the loss of an example depends on all of it.

    With `dropout`, the forward that follows drops the same: the random state is put back.
    """
    if isinstance(objective, NeedsGlobalBatch) and objective.needs_global_batch:
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices, enabled=dropout):
            statistics = [engine.compute(batch, objective.statistics, dropout) for batch in batches]
        objective.set_global_batch(ranks.gather(statistics), ranks.rank)


def _not_finite(batches: Sequence[Batch], outputs: Sequence[ObjectiveOutput]) -> list[str]:
    """The examples whose loss is not a finite number."""
    samples: list[str] = []
    for batch, output in zip(batches, outputs, strict=True):
        finite = output.example_losses.isfinite().tolist()
        samples += [str(origin) for origin, good in zip(batch.origins, finite, strict=True) if not good]
    return samples
