"""The task `train`: one attempt at a run, from joining the other ranks to the last step."""

from __future__ import annotations

from typing import Any

from mmjobs.rank.attempt import joined
from mmjobs.rank.boundary import RequeueRequested
from mmjobs.rank.position import Position
from mmjobs.rank.signals import StopRequest
from mmjobs.rank.watchdog import Watchdog
from mmjobs.train.policy_setup import build_policy_trainer
from mmjobs.train.send_model import send_model
from mmjobs.train.setup import build_trainer
from mmlaunch.recipe import Recipe
from mmlaunch.run.paths import RunPaths


def run(recipe: Recipe, paths: RunPaths, stop: StopRequest, position: Position, watch: Watchdog) -> dict[str, Any]:
    """What the run returns; raises `RequeueRequested` when it is to go on in another attempt."""
    context = joined(recipe, paths, stop, position, watch)
    try:
        build = build_policy_trainer if recipe.objective.ROLLOUTS else build_trainer
        result = build(context).run()
    except RequeueRequested:
        context.ranks.leave()  # together: whoever watches the ranks may end them all when the first one is gone
        raise
    context.ranks.leave()
    if context.ranks.first:
        send_model(context)
    return result
