"""A session: everything that one attempt needs, put together from the recipe, and let run."""

from __future__ import annotations

import json
import math
import os
import socket
from contextlib import suppress
from typing import Any

import torch

from mmjobs.checkpoint.save import Checkpoints
from mmjobs.checkpoint.train_state import Progress
from mmjobs.data.loader import batches
from mmjobs.data.sampler import in_order, seed_of
from mmjobs.engine.engine import Engine, reading
from mmjobs.engine.reference_copy import FILE as COPY
from mmjobs.engine.reference_copy import ReferenceCopy
from mmjobs.metrics import mfu
from mmjobs.metrics.tensorboard import Board
from mmjobs.model import parts, trees
from mmjobs.model.build import Built, build
from mmjobs.objectives import Reference, objective_of
from mmjobs.objectives.adapter_off import adapter_off
from mmjobs.objectives.objective import Objective, Stateful
from mmjobs.rank import preflight
from mmjobs.rank.boundary import Boundary, Interval, RequeueRequested
from mmjobs.rank.events import EventWriter
from mmjobs.rank.position import Position
from mmjobs.rank.ranks import Ranks, join
from mmjobs.rank.signals import StopRequest
from mmjobs.rank.watchdog import Phase, Watchdog
from mmjobs.train.datasets import Datasets, material
from mmjobs.train.evaluate import Evaluation
from mmjobs.train.nonfinite import NonFiniteGuard
from mmjobs.train.parity import prove
from mmjobs.train.precompute_reference import Precomputing, measured_once
from mmjobs.train.trainer import Trainer
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.recipe.capability import unsupported
from mmlaunch.recipe.model import CHECKPOINTING
from mmlaunch.recipe.objective import Preference, Reward
from mmlaunch.run.paths import RunPaths


def train(paths: RunPaths, stop: StopRequest, where: Position, watch: Watchdog) -> dict[str, Any]:
    """One attempt at the run of this directory, from joining the other ranks to the last step."""
    recipe = resolved.read(paths.resolved)
    if problems := unsupported(recipe):
        raise BadInput("\n".join(str(problem) for problem in problems))
    torch.set_num_threads(_threads(recipe))
    ranks = join(watch)
    with suppress(OSError):  # the preflight tells of a full disk
        print(f"rank {ranks.rank} of {ranks.world} runs on {socket.gethostname()}, pid {os.getpid()}", flush=True)
    events = EventWriter(paths.events, int(os.environ["MMLAUNCH_ATTEMPT"]), ranks.first)
    preflight.check(paths, recipe.resources.gpus_per_node, ranks, events)
    try:
        result = _trainer(recipe, paths, stop, where, ranks, events).run()
    except RequeueRequested:
        ranks.leave()  # together: whoever watches the ranks may end them all when the first one is gone
        raise
    ranks.leave()
    return result


def _trainer(
    recipe: Recipe, paths: RunPaths, stop: StopRequest, where: Position, ranks: Ranks, events: EventWriter
) -> Trainer:
    watch = ranks.watch
    watch.enter(Phase.START)  # each of these may take long: each has the whole allowance
    config = paths.attempt(events.attempt).deepspeed
    settings = json.loads(config.read_text())
    built = _model(recipe, settings)
    watch.enter(Phase.START)
    stuff = material(recipe, built, ranks, paths)
    examples = stuff.training.mixture
    steps = recipe.steps or max(1, math.ceil((recipe.epochs or 1) * len(examples) / recipe.batch.examples))
    watch.enter(Phase.START)
    table = parts.counts(built.network)
    work = mfu.here(built.network, recipe.precision)
    engine = Engine(built.network, recipe.optim, steps, recipe.precision, config, ranks, where)
    prove(engine, stuff.training, recipe.precision, scored=isinstance(recipe.objective, Reward))
    asked = _asked(recipe, settings)
    if measured_once(recipe):
        phase = Precomputing(paths, ranks, events, engine, recipe)
        stuff = stuff.referring(phase.run(stuff, stop, steps * recipe.batch.examples))
    watch.enter(Phase.START)
    moving = asked if isinstance(asked, ReferenceCopy) and asked.moves else None
    beside = {COPY: moving.content} if moving else {}
    checkpoints = Checkpoints(paths, recipe.checkpoint, recipe.seed, ranks, events, beside)
    objective = objective_of(recipe.objective, asked, examples.spread)
    progress = checkpoints.resume(engine)
    _remember(progress, objective, moving, paths)
    if progress.data not in ("", examples.digest):
        events.warn("the data are not those that the run began with: other rows, or another order", step=progress.step)
    progress.data = examples.digest
    _introduce(events, table, stuff, ranks, built)
    order = in_order(stuff.micro_batches, progress.cursor, steps - progress.step, recipe.batch.examples)
    evaluating = [recipe.evaluate.every] if recipe.evaluate.every else []
    finished = progress.step >= steps  # then this attempt only measures the result again
    return Trainer(
        recipe=recipe,
        paths=paths,
        steps=steps,
        micro_batches=stuff.micro_batches,
        ranks=ranks,
        engine=engine,
        objective=objective,
        batches=batches(stuff.training, order, recipe.data.workers),
        evaluation=Evaluation(stuff.held, ranks, recipe.batch, recipe.data.workers),
        checkpoints=checkpoints,
        agenda=Boundary(
            ranks,
            stop,
            saving=Interval(recipe.checkpoint.every, progress.step),
            evaluating=Interval(evaluating, None if finished else progress.evaluated),
        ),
        events=events,
        board=Board(paths.tensorboard, recipe.log.tensorboard and ranks.first, progress.step, finished),
        where=where,
        progress=progress,
        work=work,
        finite=NonFiniteGuard(paths, ranks, events, recipe.optim.bad_steps),
        moving=moving,
    )


def _remember(progress: Progress, objective: Objective, moving: ReferenceCopy | None, paths: RunPaths) -> None:
    """What an objective and a reference that moves have seen before this attempt."""
    if isinstance(objective, Stateful):
        objective.restore(progress.objective)
    if moving and progress.step:
        moving.load(paths.checkpoint(progress.step))


def _model(recipe: Recipe, settings: dict[str, Any]) -> Built:
    """The same weights on every rank: they come from files, and from the recipe's seed alone."""
    torch.manual_seed(seed_of("model", recipe.seed))
    model, saves = recipe.model, os.environ.get(CHECKPOINTING, "off")
    if model.activation_checkpointing == "auto":  # decided when the attempt was planned
        model = model.model_copy(update={"activation_checkpointing": saves})
    with reading(settings):
        return build(model, recipe.precision, scored=isinstance(recipe.objective, Reward))


def _asked(recipe: Recipe, settings: dict[str, Any]) -> Reference | None:
    """Who says what the reference says, where it is asked at every step."""
    objective = recipe.objective
    if not isinstance(objective, Preference) or not objective.refers or objective.reference == "precomputed":
        return None
    if objective.reference == "adapter off":
        return adapter_off
    if objective.reference_stage is not None:
        half = {"enabled": recipe.precision == "bf16" and objective.reference_stage > 0}
        settings = {**settings, "bf16": half, "zero_optimization": {"stage": objective.reference_stage}}
    return ReferenceCopy(_model(recipe, settings).network, recipe.precision, settings, objective.reference_sync)


def _threads(recipe: Recipe) -> int:
    """The cores of this rank: what it was given, or its share of those that the ranks of a node may use together."""
    if recipe.resources.cpus_per_rank:
        return recipe.resources.cpus_per_rank
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    return int(given) if given else max(1, len(os.sched_getaffinity(0)) // recipe.resources.ranks_per_node)


def _introduce(
    events: EventWriter, table: dict[str, dict[str, int]], stuff: Datasets, ranks: Ranks, built: Built
) -> None:
    how = f"packed rows, {trees.kind(built.network) or 'by positions'}" if stuff.training.packed else "padded rows"
    saves = bool(built.network.is_gradient_checkpointing)
    events.event("ready", world=ranks.world, parameters=table, attention=how, activation_checkpointing=saves)
    for part, numbers in table.items():
        events.say(f"{part:<12}{numbers['trainable']:>14,} trainable{numbers['frozen']:>14,} frozen")
    events.say(f"training    {stuff.training.mixture}")
    events.say(f"evaluation  {stuff.held.mixture}")
    if stuff.longer:
        what = f"{stuff.longer} training examples are longer than batch.tokens_per_gpu: their prompt and all answers"
        events.warn(f"{what} are a row of their own, which needs more memory", step=0)
    events.say(f"attention   {how}; activation checkpointing {'on' if saves else 'off'}")
