"""The task `train`: one attempt at a run, from joining the other ranks to the last step."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Any

import torch

from mmjobs.rank import preflight
from mmjobs.rank.boundary import RequeueRequested
from mmjobs.rank.context import Context
from mmjobs.rank.events import EventWriter
from mmjobs.rank.position import Position
from mmjobs.rank.ranks import join
from mmjobs.rank.signals import StopRequest
from mmjobs.rank.watchdog import Watchdog
from mmjobs.train.policy_setup import build_policy_trainer
from mmjobs.train.setup import build_trainer
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.capability import unsupported
from mmlaunch.run import owner
from mmlaunch.run.paths import RunPaths


def run(recipe: Recipe, paths: RunPaths, stop: StopRequest, position: Position, watch: Watchdog) -> dict[str, Any]:
    """What the run returns; raises `RequeueRequested` when it is to go on in another attempt."""
    if problems := unsupported(recipe):
        raise BadInput("\n".join(str(problem) for problem in problems))
    torch.set_num_threads(_threads(recipe))
    ranks = join(watch)
    with suppress(OSError):  # the preflight reports a full disk
        print(f"rank {ranks.rank} of {ranks.world} runs on {socket.gethostname()}, pid {os.getpid()}", flush=True)
    events = EventWriter(
        paths, int(os.environ["MMLAUNCH_ATTEMPT"]), ranks.first, int(os.environ.get(owner.VARIABLE) or 0)
    )
    preflight.check(paths, recipe.resources.gpus_per_node, ranks, events)
    try:
        build = build_policy_trainer if recipe.objective.ROLLOUTS else build_trainer
        result = build(Context(recipe, paths, ranks, events, position, stop)).run()
    except RequeueRequested:
        ranks.leave()  # together: whoever watches the ranks may end them all when the first one is gone
        raise
    ranks.leave()
    return result


def _threads(recipe: Recipe) -> int:
    """The cores of this rank: what it was given, or its share of those that the ranks of a node may use together."""
    if recipe.resources.cpus_per_rank:
        return recipe.resources.cpus_per_rank
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    return int(given) if given else max(1, len(os.sched_getaffinity(0)) // recipe.resources.ranks_per_node)
