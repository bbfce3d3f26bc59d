"""Evaluation: the objective's metrics over all held-out examples."""

from __future__ import annotations

from collections.abc import Callable

from mmjobs.data.loader import Examples, batches
from mmjobs.objectives.measured import Objective
from mmjobs.train.engine import Engine
from mmjobs.train.metrics import Totals
from mmjobs.train.ranks import Ranks


class Evaluation:
    """The held-out examples, dealt out to the ranks."""

    def __init__(self, examples: Examples, ranks: Ranks, micro: int, workers: int) -> None:
        self.held_out, self.processor, self._examples = examples.mixture, examples.processor, examples
        self._ranks, self._micro, self._workers = ranks, micro, workers

    def measure(self, engine: Engine, objective: Objective, check: Callable[[], None]) -> dict[str, float]:
        """`eval/loss` and so on; all ranks `check` before each batch, which may raise."""
        totals = Totals(objective.metrics)
        mine = list(range(self._ranks.rank, len(self.held_out), self._ranks.world))
        longest = -(-len(self.held_out) // self._ranks.world)  # examples of the rank that has the most
        order = [mine[start : start + self._micro] for start in range(0, longest, self._micro)]  # the last may be empty
        for batch in batches(self._examples, order, self._workers):
            check()
            totals.add(engine.look_at(batch, objective))
        totals.reduce(self._ranks)
        return {f"eval/{name}": value for name, value in totals.means().items()}
