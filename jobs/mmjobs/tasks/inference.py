"""The tasks that train nothing: one attempt at a shard of predict, evaluate, score, dropout_ntp or correctness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmjobs.inference.correctness import CorrectnessPairs
from mmjobs.inference.dropout_ntp import DropoutNtpPairs
from mmjobs.inference.evaluate import Verified
from mmjobs.inference.predict import Predict
from mmjobs.inference.score import Scores
from mmjobs.inference.shard import Shard, open_rows
from mmjobs.inference.work import Work
from mmjobs.rank.attempt import joined
from mmjobs.rank.boundary import RequeueRequested
from mmjobs.rank.context import Context
from mmjobs.rank.position import Position
from mmjobs.rank.signals import StopRequest
from mmjobs.rank.watchdog import Watchdog
from mmlaunch.recipe import Recipe
from mmlaunch.run.paths import RunPaths

WORK: dict[str, Callable[[Context], Work]] = {
    "predict": Predict, "evaluate": Verified, "score": Scores, "dropout_ntp": DropoutNtpPairs,
    "correctness": CorrectnessPairs,
}  # fmt: skip
"""By the method that a recipe names."""


def run(recipe: Recipe, paths: RunPaths, stop: StopRequest, position: Position, watch: Watchdog) -> dict[str, Any]:
    """What the shard returns; raises `RequeueRequested` when it is to go on in another attempt."""
    context = joined(recipe, paths, stop, position, watch)
    try:
        definition, rows = open_rows(context)
        work = WORK[recipe.objective.method](context)
        try:
            result = Shard(context, work, definition, rows).run()
        finally:
            work.close()
    except RequeueRequested:
        context.ranks.leave()  # together: whoever watches the ranks may end them all when the first one is gone
        raise
    context.ranks.leave()
    return result
