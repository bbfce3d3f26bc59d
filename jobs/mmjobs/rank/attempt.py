"""The beginning of an attempt: this rank joins the others, and all look whether their nodes are fit."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

import torch

from mmjobs.rank import gpu, preflight
from mmjobs.rank.context import Context
from mmjobs.rank.events import EventWriter
from mmjobs.rank.position import Position
from mmjobs.rank.ranks import join
from mmjobs.rank.signals import StopRequest
from mmjobs.rank.watchdog import Watchdog
from mmlaunch.recipe import Recipe
from mmlaunch.run import owner
from mmlaunch.run.paths import RunPaths


def joined(recipe: Recipe, paths: RunPaths, stop: StopRequest, position: Position, watch: Watchdog) -> Context:
    """The context of the attempt, once all ranks are there."""
    torch.set_num_threads(_threads(recipe))
    watch.doing("joins the other ranks")
    ranks = join(watch)
    views = ranks.gather(gpu.seen())
    gpu.take(ranks.rank, views)
    with suppress(OSError):  # the preflight reports a full disk
        print(f"rank {ranks.rank} of {ranks.world} runs on {socket.gethostname()}, pid {os.getpid()}", flush=True)
    events = EventWriter(
        paths, int(os.environ["MMLAUNCH_ATTEMPT"]), ranks.first, int(os.environ.get(owner.VARIABLE) or 0)
    )
    watch.doing("checks the nodes")
    preflight.check(paths, recipe.resources.gpus_per_node, views, ranks, events)
    return Context(recipe, paths, ranks, events, position, stop)


def _threads(recipe: Recipe) -> int:
    """The cores of this rank: what it was given, or its share of those that the ranks of a node may use together."""
    if recipe.resources.cpus_per_rank:
        return recipe.resources.cpus_per_rank
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    return int(given) if given else max(1, len(os.sched_getaffinity(0)) // recipe.resources.ranks_per_node)
