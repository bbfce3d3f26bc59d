"""Evaluation: the objective's metrics over all held-out examples, and generated answers to some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch

from mmjobs.data.batch import Batch
from mmjobs.data.loader import Examples, batches
from mmjobs.engine.engine import Engine
from mmjobs.metrics.tensorboard import Sample
from mmjobs.metrics.totals import Totals, summary
from mmjobs.model.generate import greedy
from mmjobs.objectives.objective import Objective
from mmjobs.rank.context import Context
from mmjobs.train.datasets import batches_of_rank
from mmjobs.train.learner import share_statistics

LONGEST_SAMPLE = 48
"""The most tokens of a sample, which is for people to read."""


class Evaluation(Protocol):
    """Measures the model of a run on data that it does not train on."""

    def __len__(self) -> int:
        """The number of held-out examples."""

    def measure(self, check: Callable[[], None]) -> dict[str, float]:
        """`eval/loss` and so on; all ranks call `check` before each batch, which may raise."""

    def samples(self) -> Sequence[Sample]:
        """Generated answers for people to look at; on rank 0."""


class ObjectiveEvaluation:
    """The held-out examples, split over the ranks."""

    def __init__(self, context: Context, examples: Examples, engine: Engine, objective: Objective) -> None:
        self._examples, self._engine, self._objective = examples, engine, objective
        self._ranks, self._workers = context.ranks, context.recipe.data.workers
        self._samples = context.recipe.evaluate.samples
        self._order = batches_of_rank(examples, range(len(self)), context.recipe.batch, context.ranks)

    def __len__(self) -> int:
        return len(self._examples.mixture)

    def measure(self, check: Callable[[], None]) -> dict[str, float]:
        totals = Totals(self._objective)
        share_statistics(self._objective, self._engine, self._ranks, self._batches(check))
        for batch in self._batches(check):
            totals.add(self._engine.compute(batch, self._objective), self._objective.units(batch))
        totals.reduce(self._ranks)
        return {f"eval/{name}": value for name, value in summary(self._objective, totals.means()).items()}

    def _batches(self, check: Callable[[], None]) -> Iterable[Batch]:
        for batch in batches(self._examples, self._order, self._workers):
            check()
            yield batch

    def samples(self) -> Sequence[Sample]:
        """The first held-out examples, answered by greedy generation; where weights are sharded, all ranks help."""
        if not (self._ranks.first or self._engine.sharded):
            return []
        return [self._answer(place) for place in range(min(self._samples, len(self)))]

    def _answer(self, place: int) -> Sample:
        example, processor = self._examples.mixture[place], self._examples.processor
        budget = self._examples.mixture.part(place).max_tiles
        prompt = processor.prompt(example, budget)
        with torch.no_grad(), self._engine.autocast():
            answer = greedy(self._engine.eval_network(), processor.chat, processor.pixels, prompt, LONGEST_SAMPLE)
        question = "\n".join(turn.text.strip() for turn in example.prompt)
        return Sample(question, example.answers[0].text, answer, processor.pixels.visible(prompt.image_inputs))
