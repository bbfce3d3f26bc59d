"""A session: everything that one attempt needs, put together from the recipe, and let run."""

from __future__ import annotations

import math
import os
import socket
from contextlib import suppress
from typing import Any

import torch

from mmjobs import preflight
from mmjobs.data.encode import Processor
from mmjobs.data.loader import batches
from mmjobs.data.mixture import Mixture, mixture, questions
from mmjobs.data.order import micro_batches, seed_of
from mmjobs.model import parts
from mmjobs.model.build import Built, build
from mmjobs.objectives import OBJECTIVES
from mmjobs.objectives.measured import Objective
from mmjobs.train.agenda import Agenda, Interval
from mmjobs.train.board import Board
from mmjobs.train.checkpoint import Checkpoints
from mmjobs.train.engine import Engine
from mmjobs.train.evaluate import Evaluation
from mmjobs.train.journal import Journal
from mmjobs.train.loop import Saved, Trainer
from mmjobs.train.ranks import Ranks, join
from mmjobs.train.signals import Stop
from mmjobs.train.watchdog import Phase, Watchdog
from mmjobs.train.whereabouts import Whereabouts
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.recipe.batch import split
from mmlaunch.recipe.capability import unsupported
from mmlaunch.run.paths import RunPaths


def train(paths: RunPaths, stop: Stop, where: Whereabouts, watch: Watchdog) -> dict[str, Any]:
    """One attempt at the run of this directory, from joining the other ranks to the last step."""
    recipe = resolved.read(paths.resolved)
    if problems := unsupported(recipe):
        raise BadInput("\n".join(str(problem) for problem in problems))
    torch.set_num_threads(_threads(recipe))
    ranks = join(watch)
    with suppress(OSError):  # the preflight tells of a full disk
        print(f"rank {ranks.rank} of {ranks.world} runs on {socket.gethostname()}, pid {os.getpid()}", flush=True)
    journal = Journal(paths.events, int(os.environ["MMLAUNCH_ATTEMPT"]), ranks.first)
    preflight.check(paths, recipe.resources.gpus_per_node, ranks, journal)
    trainer = _trainer(recipe, paths, stop, where, ranks, journal)
    try:
        result = trainer.run()
    except Saved:
        ranks.leave()  # together: whoever watches the ranks may end them all when the first one is gone
        raise
    ranks.leave()
    return result


def _trainer(
    recipe: Recipe, paths: RunPaths, stop: Stop, where: Whereabouts, ranks: Ranks, journal: Journal
) -> Trainer:
    watch = ranks.watch
    watch.enter(Phase.START)  # each of these may take long: each has the whole allowance
    built = _model(recipe)
    watch.enter(Phase.START)
    processor = _processor(recipe, built)
    held_out = mixture(recipe.data.eval, processor, recipe.seed, moved=watch.moved)
    asked = questions(held_out) if recipe.data.deduplicate else ()
    examples = mixture(recipe.data.train, processor, recipe.seed, asked, watch.moved)
    objective = OBJECTIVES[recipe.objective.method]()
    _check_best(recipe, objective)
    micro, accumulation = _split(recipe, ranks.world)
    steps = recipe.steps or max(1, math.ceil((recipe.epochs or 1) * len(examples) / recipe.batch.examples))
    watch.enter(Phase.START)
    engine = Engine(built.network, recipe.optim, steps, recipe.precision, ranks)
    checkpoints = Checkpoints(paths, recipe.checkpoint, recipe.seed, ranks, journal)
    progress = checkpoints.resume(engine)
    _introduce(journal, built, examples, held_out, ranks)
    order = micro_batches(
        progress.cursor,
        steps - progress.step,
        recipe.batch.examples,
        ranks.rank,
        ranks.world,
        micro,
        len(examples),
        recipe.seed,
    )
    evaluating = [recipe.evaluate.every] if recipe.evaluate.every else []
    finished = progress.step >= steps  # then this attempt only measures the result again
    return Trainer(
        recipe=recipe,
        steps=steps,
        accumulation=accumulation,
        ranks=ranks,
        engine=engine,
        objective=objective,
        batches=batches(examples, processor, order, recipe.data.workers),
        evaluation=Evaluation(held_out, processor, ranks, micro, recipe.data.workers),
        checkpoints=checkpoints,
        agenda=Agenda(
            ranks,
            stop,
            saving=Interval(recipe.checkpoint.every, progress.step),
            evaluating=Interval(evaluating, None if finished else progress.evaluated),
        ),
        journal=journal,
        board=Board(paths.tensorboard, recipe.log.tensorboard and ranks.first, progress.step),
        where=where,
        progress=progress,
    )


def _model(recipe: Recipe) -> Built:
    """The same weights on every rank: they come from the recipe's seed alone."""
    torch.manual_seed(seed_of("model", recipe.seed))
    built = build(recipe.model)
    parts.freeze(built.network, recipe.model, recipe.precision)
    return built


def _processor(recipe: Recipe, built: Built) -> Processor:
    longest = min(recipe.data.max_tokens, built.positions)
    return Processor(built.tokenizer, built.image_side, built.image_tokens, longest, recipe.data.overlong)


def _split(recipe: Recipe, world: int) -> tuple[int, int]:
    found = split(recipe.batch.examples, world, recipe.batch.micro)
    if found is None:
        raise BadInput(f"batch.global: {recipe.batch.examples} examples do not divide over {world} ranks")
    return found


def _check_best(recipe: Recipe, objective: Objective) -> None:
    measured = [f"eval/{name}" for name in objective.metrics]
    if recipe.checkpoint.best is not None and recipe.checkpoint.best not in measured:
        raise BadInput(
            f"checkpoint.best: {recipe.checkpoint.best!r} is never measured; write one of {', '.join(measured)}"
        )


def _threads(recipe: Recipe) -> int:
    """The cores of this rank: what it was given, or its share of those that the ranks of a node may use together."""
    if recipe.resources.cpus_per_rank:
        return recipe.resources.cpus_per_rank
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    return int(given) if given else max(1, len(os.sched_getaffinity(0)) // recipe.resources.ranks_per_node)


def _introduce(journal: Journal, built: Built, examples: Mixture, held_out: Mixture, ranks: Ranks) -> None:
    table = parts.counts(built.network)
    journal.event("ready", world=ranks.world, parameters=table)
    for part, numbers in table.items():
        journal.say(f"{part:<12}{numbers['trainable']:>14,} trainable{numbers['frozen']:>14,} frozen")
    journal.say(f"training    {examples}")
    journal.say(f"evaluation  {held_out}")
