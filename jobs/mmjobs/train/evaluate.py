"""Evaluation: the objective's metrics over all held-out examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from mmjobs.data.batch import Batch
from mmjobs.data.loader import Examples, batches
from mmjobs.data.sampler import dealt, one_each
from mmjobs.engine.engine import Engine
from mmjobs.metrics.totals import Totals, summary
from mmjobs.objectives.objective import LooksAhead, Objective
from mmjobs.rank.ranks import Ranks
from mmlaunch.recipe.batch import Batch as Size

AT_A_TIME = 8
"""Examples of a batch, where nothing else says how many."""


class Evaluation:
    """The held-out examples, dealt out to the ranks."""

    def __init__(self, examples: Examples, ranks: Ranks, size: Size, workers: int) -> None:
        self.held_out, self.processor, self._examples = examples.mixture, examples.processor, examples
        self._ranks, self._workers = ranks, workers
        self._order = turns(examples, range(len(self.held_out)), size, ranks)

    def measure(self, engine: Engine, objective: Objective, check: Callable[[], None]) -> dict[str, float]:
        """`eval/loss` and so on; all ranks `check` before each batch, which may raise."""
        totals = Totals(objective)
        look_ahead(objective, engine, self._ranks, self._batches(check))
        for batch in self._batches(check):
            totals.add(engine.look_at(batch, objective), objective.units(batch))
        totals.reduce(self._ranks)
        return {f"eval/{name}": value for name, value in summary(objective, totals.means()).items()}

    def _batches(self, check: Callable[[], None]) -> Iterable[Batch]:
        for batch in batches(self._examples, self._order, self._workers):
            check()
            yield batch


def turns(examples: Examples, places: Iterable[int], size: Size, ranks: Ranks) -> list[list[int]]:
    """These places in batches of this rank, as large as those that are trained on."""
    if size.tokens_per_gpu and examples.packed:
        return dealt(list(places), examples.tokens, size.tokens_per_gpu, ranks.rank, ranks.world)
    return dealt(list(places), one_each, size.micro or AT_A_TIME, ranks.rank, ranks.world)


def look_ahead(
    objective: Objective, engine: Engine, ranks: Ranks, batches: Iterable[Batch], learning: bool = False
) -> None:
    """Let an objective that depends on all examples at once see them: those of all ranks.

    Who is `learning` sees them once more, with the same dropout.
    """
    if isinstance(objective, LooksAhead) and objective.looks_ahead:
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices, enabled=learning):
            told = [engine.look_at(batch, objective.ahead, learning) for batch in batches]
        objective.know(ranks.gather(told), ranks.rank)
