"""Evaluation: the objective's metrics over all held-out examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmjobs.data.batch import Batch
from mmjobs.data.loader import Examples, batches
from mmjobs.data.order import shares
from mmjobs.objectives.measured import LooksAhead, Objective
from mmjobs.train.engine import Engine
from mmjobs.train.metrics import Totals, summary
from mmjobs.train.ranks import Ranks

AT_A_TIME = 8
"""Examples of a batch, where the recipe packs its rows."""


class Evaluation:
    """The held-out examples, dealt out to the ranks."""

    def __init__(self, examples: Examples, ranks: Ranks, micro: int, workers: int) -> None:
        self.held_out, self.processor, self._examples = examples.mixture, examples.processor, examples
        self._ranks, self._micro, self._workers = ranks, micro, workers

    def measure(self, engine: Engine, objective: Objective, check: Callable[[], None]) -> dict[str, float]:
        """`eval/loss` and so on; all ranks `check` before each batch, which may raise."""
        totals = Totals(objective)
        order = shares(len(self.held_out), self._ranks.rank, self._ranks.world, self._micro)
        for batch in batches(self._examples, order, self._workers):
            check()
            look_ahead(objective, engine, self._ranks, [batch])
            totals.add(engine.look_at(batch, objective), objective.units(batch))
        totals.reduce(self._ranks)
        return {f"eval/{name}": value for name, value in summary(objective, totals.means()).items()}


def look_ahead(objective: Objective, engine: Engine, ranks: Ranks, batches: Sequence[Batch]) -> None:
    """Let an objective that depends on all examples at once see them: those of all ranks."""
    if isinstance(objective, LooksAhead) and objective.looks_ahead:
        told = [engine.look_at(batch, objective.ahead) for batch in batches]
        objective.know(ranks.gather(told), ranks.rank)
