"""A session: everything that one attempt needs, put together from the recipe, and let run."""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from mmjobs import preflight
from mmjobs.data.encode import Processor
from mmjobs.data.formats.registry import parts as parts_of
from mmjobs.data.loader import Examples, batches
from mmjobs.data.mixture import Mixture, mixture
from mmjobs.data.order import Batches, equal_batches, in_order, packed_batches, position, seed_of
from mmjobs.data.reference import Store
from mmjobs.data.survey import survey
from mmjobs.data.wants import Wants
from mmjobs.data.wants import of as wants_of
from mmjobs.model import parts, trees
from mmjobs.model.build import Built, build
from mmjobs.objectives import Reference, objective_of
from mmjobs.objectives.asked import adapter_off
from mmjobs.objectives.measured import Stateful
from mmjobs.train import skipped, useful
from mmjobs.train.agenda import Agenda, GivenUp, Interval
from mmjobs.train.board import Board
from mmjobs.train.checkpoint import Checkpoints
from mmjobs.train.engine import Engine, reading
from mmjobs.train.evaluate import Evaluation
from mmjobs.train.finite import Finite
from mmjobs.train.frozen import FILE as COPY
from mmjobs.train.frozen import Copy
from mmjobs.train.journal import Journal
from mmjobs.train.loop import Saved, Trainer
from mmjobs.train.ranks import Ranks, join
from mmjobs.train.reference import Precomputing, scope_of
from mmjobs.train.signals import Stop
from mmjobs.train.watchdog import Phase, Watchdog
from mmjobs.train.whereabouts import Whereabouts
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.recipe.batch import split
from mmlaunch.recipe.capability import unsupported
from mmlaunch.recipe.model import CHECKPOINTING
from mmlaunch.recipe.objective import Preference, Reward, Sft
from mmlaunch.run.paths import RunPaths

_EVALUATED = 8
"""Examples of a batch in evaluation, where the recipe packs its rows."""


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
    config = paths.attempt(journal.attempt).deepspeed
    settings = json.loads(config.read_text())
    built = _model(recipe, settings)
    watch.enter(Phase.START)
    processor = _processor(recipe, built)
    examples, held_out = _data(recipe, processor, ranks, paths)
    steps = recipe.steps or max(1, math.ceil((recipe.epochs or 1) * len(examples) / recipe.batch.examples))
    watch.enter(Phase.START)
    table = parts.counts(built.network)
    work = useful.here(built.network, recipe.precision)
    engine = Engine(built.network, recipe.optim, steps, recipe.precision, config, ranks, where)
    place_of = partial(position, count=len(examples), seed=recipe.seed)
    packed = packs(recipe, built)
    training, held = _examples(recipe, processor, examples, held_out, packed, place_of)
    asked = _asked(recipe, settings)
    objective = objective_of(recipe.objective, asked, examples.spread)
    if (store := _precomputed(recipe, paths, stop, ranks, journal, engine, training, held)) is not None:
        training, held = replace(training, reference=store), replace(held, reference=store)
    watch.enter(Phase.START)
    moving = asked if isinstance(asked, Copy) and asked.moves else None
    beside = {COPY: moving.content} if moving else {}
    checkpoints = Checkpoints(paths, recipe.checkpoint, recipe.seed, ranks, journal, beside)
    progress = checkpoints.resume(engine)
    if isinstance(objective, Stateful):
        objective.restore(progress.objective)
    if moving and progress.step:
        moving.load(paths.checkpoint(progress.step))
    if progress.data not in ("", examples.digest):
        journal.warn("the data are not those that the run began with: other rows, or another order", step=progress.step)
    progress.data = examples.digest
    attention = f"{trees.kind(built.network) or 'rows'}{'' if packed else ', padded'}"
    _introduce(journal, table, examples, held_out, ranks, attention)
    micro_batches = _micro_batches(recipe, built, ranks, examples, place_of, processor.wants)
    order = in_order(micro_batches, progress.cursor, steps - progress.step, recipe.batch.examples)
    evaluating = [recipe.evaluate.every] if recipe.evaluate.every else []
    finished = progress.step >= steps  # then this attempt only measures the result again
    return Trainer(
        recipe=recipe,
        paths=paths,
        steps=steps,
        micro_batches=micro_batches,
        ranks=ranks,
        engine=engine,
        objective=objective,
        batches=batches(training, order, recipe.data.workers),
        evaluation=Evaluation(held, ranks, recipe.batch.micro or _EVALUATED, recipe.data.workers),
        checkpoints=checkpoints,
        agenda=Agenda(
            ranks,
            stop,
            saving=Interval(recipe.checkpoint.every, progress.step),
            evaluating=Interval(evaluating, None if finished else progress.evaluated),
        ),
        journal=journal,
        board=Board(paths.tensorboard, recipe.log.tensorboard and ranks.first, progress.step, finished),
        where=where,
        progress=progress,
        work=work,
        finite=Finite(paths, ranks, journal, recipe.optim.bad_steps),
        moving=moving,
    )


def _model(recipe: Recipe, settings: dict[str, Any]) -> Built:
    """The same weights on every rank: they come from files, and from the recipe's seed alone."""
    torch.manual_seed(seed_of("model", recipe.seed))
    model, saves = recipe.model, os.environ.get(CHECKPOINTING, "off")
    if model.activation_checkpointing == "auto":  # decided when the attempt was planned
        model = model.model_copy(update={"activation_checkpointing": saves})
    with reading(settings):
        return build(model, recipe.precision, scored=isinstance(recipe.objective, Reward))


def packs(recipe: Recipe, built: Built) -> bool:
    """Whether the examples of a micro-batch stand side by side in one row; otherwise each answer has its own."""
    if isinstance(recipe.objective, Sft):
        return recipe.batch.tokens_per_gpu is not None
    return built.branches


def _examples(
    recipe: Recipe, processor: Processor, train: Mixture, held: Mixture, packed: bool, place_of: Callable[[int], int]
) -> tuple[Examples, Examples]:
    """Both as the loader wants them. What a reference has seen looks the same whenever it is seen again."""
    tolerant = recipe.data.on_bad == "skip"
    steady = isinstance(recipe.objective, Preference) and recipe.objective.refers
    both = partial(Examples, processor=processor, tolerant=tolerant, spoils=recipe.seed, packed=packed)
    return both(train, place_of=place_of, seed=recipe.seed, steady=steady), both(held)


def _asked(recipe: Recipe, settings: dict[str, Any]) -> Reference | None:
    """Who says what the reference says, where it is asked at every step."""
    objective = recipe.objective
    if not isinstance(objective, Preference) or not objective.refers or objective.reference == "precomputed":
        return None
    if objective.reference == "adapter off":
        return adapter_off
    return Copy(_model(recipe, settings).network, recipe.precision, settings, objective.reference_sync)


def _precomputed(
    recipe: Recipe,
    paths: RunPaths,
    stop: Stop,
    ranks: Ranks,
    journal: Journal,
    engine: Engine,
    training: Examples,
    held: Examples,
) -> Store | None:
    """What the reference says, where it is asked once, before the first step."""
    settings, budget = recipe.objective, recipe.batch.tokens_per_gpu
    if not isinstance(settings, Preference) or not settings.refers or settings.reference != "precomputed":
        return None
    check = Agenda(ranks, stop, Interval([], None), Interval([], None)).check
    phase = Precomputing(paths, ranks, journal, engine, recipe.data.workers, partial(check, 0))
    sets = [replace(training, place_of=int), held]
    rooms = [partial(_tokens, one) if budget and one.packed else _one for one in sets]
    try:
        return phase.run(sets, rooms, budget or recipe.batch.micro or _EVALUATED, scope_of(sets))
    except GivenUp as reason:
        journal.event("signal", name=str(reason), step=0)
        raise Saved(str(reason)) from None


def _tokens(examples: Examples, place: int) -> int:
    return examples.mixture.tokens(place, examples.processor.wants)


def _one(place: int) -> int:
    return 1


def _data(recipe: Recipe, processor: Processor, ranks: Ranks, paths: RunPaths) -> tuple[Mixture, Mixture]:
    """What is trained on and what is held out; each rank looks at its share of the rows."""
    tolerant = recipe.data.on_bad == "skip"
    look = partial(
        survey, processor=processor, share=(ranks.rank, ranks.world), gather=ranks.gather, moved=ranks.watch.moved,
    )  # fmt: skip
    held = look(sum((parts_of(source) for source in recipe.data.eval), ()))
    ranks.watch.enter(Phase.START)
    asked = held.questions if recipe.data.deduplicate else set()
    train = look(sum((parts_of(source) for source in recipe.data.train), ()), held_out=asked)
    if ranks.first:
        skipped.write(paths, [*train.left, *held.left])
    return mixture(train, recipe.seed, tolerant), mixture(held, recipe.seed, tolerant)


def _processor(recipe: Recipe, built: Built) -> Processor:
    longest = min(recipe.data.max_tokens, built.positions)
    return Processor(built.chat, built.pixels, longest, recipe.data.overlong, wants_of(recipe.objective))


def _micro_batches(
    recipe: Recipe, built: Built, ranks: Ranks, examples: Mixture, place_of: Callable[[int], int], wants: Wants
) -> Batches:
    """What a rank works on at a time: rows up to a token budget, or a fixed number of examples."""
    size, budget = recipe.batch.examples, recipe.batch.tokens_per_gpu
    if budget is not None:
        if not built.packs:
            what = "this model places its tokens in two dimensions, and rows of several examples have one"
            raise BadInput(f"batch.tokens_per_gpu: {what}; write batch.micro: 1 instead")
        if not built.branches and not isinstance(recipe.objective, Sft):
            what = "the attention of this model cannot branch, and each answer has a row of its own"
            raise BadInput(f"batch.tokens_per_gpu: {what}; write batch.micro: 1 instead")
        return packed_batches(
            size, ranks.rank, ranks.world, budget, lambda index: examples.tokens(place_of(index), wants)
        )
    found = split(size, ranks.world, recipe.batch.micro)
    if found is None:
        raise BadInput(f"batch.global: {size} examples do not divide over {ranks.world} ranks")
    return equal_batches(size, ranks.rank, ranks.world, found[0])


def _threads(recipe: Recipe) -> int:
    """The cores of this rank: what it was given, or its share of those that the ranks of a node may use together."""
    if recipe.resources.cpus_per_rank:
        return recipe.resources.cpus_per_rank
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    return int(given) if given else max(1, len(os.sched_getaffinity(0)) // recipe.resources.ranks_per_node)


def _introduce(
    journal: Journal,
    table: dict[str, dict[str, int]],
    examples: Mixture,
    held_out: Mixture,
    ranks: Ranks,
    attention: str,
) -> None:
    journal.event("ready", world=ranks.world, parameters=table, attention=attention)
    for part, numbers in table.items():
        journal.say(f"{part:<12}{numbers['trainable']:>14,} trainable{numbers['frozen']:>14,} frozen")
    journal.say(f"training    {examples}")
    journal.say(f"evaluation  {held_out}")
