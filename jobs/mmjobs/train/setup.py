"""Setup: builders that each return one piece of an attempt, and the trainer that is put together from them."""

from __future__ import annotations

import math
import os
from functools import partial
from typing import Any

import torch
from torch import nn

from mmjobs.checkpoint import keep_frozen, memory_tier
from mmjobs.checkpoint.memory_tier import MemoryTier
from mmjobs.checkpoint.resume import rejected_steps, resume
from mmjobs.checkpoint.save import CheckpointWriter
from mmjobs.checkpoint.train_state import TrainState
from mmjobs.data.sampler import seed_of
from mmjobs.engine.engine import Engine, building
from mmjobs.engine.reference_copy import ReferenceCopy
from mmjobs.metrics import mfu
from mmjobs.metrics.curves import Curves, open_trackers
from mmjobs.metrics.profiler import Profiler
from mmjobs.metrics.tensorboard import TensorBoardWriter
from mmjobs.metrics.throughput import Throughput
from mmjobs.model import parts, preprocessor, trees
from mmjobs.model.build import BuiltModel, build
from mmjobs.objectives import objective_of
from mmjobs.objectives.adapter_off import adapter_off
from mmjobs.objectives.objective import Reference
from mmjobs.rank.boundary import Boundary, Interval
from mmjobs.rank.context import Context
from mmjobs.rank.watchdog import Phase
from mmjobs.train import pins
from mmjobs.train.datasets import Datasets, build_datasets
from mmjobs.train.evaluate import Evaluation, ObjectiveEvaluation
from mmjobs.train.learner import Learner, ObjectiveLearner
from mmjobs.train.nonfinite import NonFiniteGuard
from mmjobs.train.parity import check_parity
from mmjobs.train.precompute_reference import precompute_reference
from mmjobs.train.processor_parity import check_processor
from mmjobs.train.source import DatasetSource
from mmjobs.train.trainer import Services, Trainer
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.model import CHECKPOINTING


def build_trainer(context: Context, built: BuiltModel | None = None) -> Trainer:
    """Everything that one attempt needs, in the order in which one piece needs the others.

    `built`: a model that exists already; otherwise it is built as the recipe says.
    """
    built = built or build_model(context)
    parameters, flops = parts.counts(built.network), mfu.model_flops(built.network, context.recipe.precision)
    datasets = build_datasets(context, built)
    check_served(context, built, datasets)
    steps = total_steps(context.recipe, datasets)
    engine = build_engine(context, built, steps)
    context.ranks.watch.doing("compares packed rows with single ones")
    check_parity(engine, datasets.training, context.recipe.precision, context.recipe.objective.has_scoring_head)
    reference = build_reference(context)
    if context.recipe.objective.precomputes_reference:
        examples = steps * context.recipe.batch.examples
        datasets = datasets.with_reference(precompute_reference(context, engine, datasets, examples))
    learner = build_learner(context, engine, datasets, reference)
    source = DatasetSource(context, datasets, steps)
    context.ranks.watch.enter(Phase.START)
    context.ranks.watch.doing("looks for a checkpoint")
    memory = memory_tier.build(context)
    state = resume(context, learner.engines, memory)
    if state.step:
        source.restore(state.source)
        learner.restore(state.learner)
    introduce(context, built, datasets, parameters)
    evaluation = ObjectiveEvaluation(context, datasets.evaluation, learner.engine, learner.objective)
    services = build_services(context, learner, evaluation, state, steps, flops, memory)
    return Trainer(context, source, learner, services, state, steps)


def build_model(context: Context) -> BuiltModel:
    """The same weights on every rank: they come from files, and from the recipe's seed alone."""
    context.ranks.watch.enter(Phase.START)  # each piece may take long: each has the whole allowance
    context.ranks.watch.doing("loads the model")
    pins.check(context)
    recipe = context.recipe
    if lost := pins.lost_source(context):
        context.events.warn(f"{lost}: the run goes on from its own checkpoint", step=0)
        recipe = without_init(recipe)
    return build_network(recipe, context.deepspeed, recipe.objective.has_scoring_head)


def without_init(recipe: Recipe) -> Recipe:
    """The recipe of the same model, whose weights a checkpoint of the run replaces."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"init_from": None})})


def build_network(recipe: Recipe, settings: dict[str, Any], scoring_head: bool = False) -> BuiltModel:
    """A model of its own, for an engine with these settings of DeepSpeed."""
    torch.manual_seed(seed_of("model", recipe.seed))
    model, checkpointing = recipe.model, os.environ.get(CHECKPOINTING, "off")
    if model.activation_checkpointing == "auto":  # decided when the attempt was planned
        model = model.model_copy(update={"activation_checkpointing": checkpointing})
    with building(settings):
        return build(model, recipe.precision, scoring_head)


def check_served(context: Context, built: BuiltModel, datasets: Datasets) -> None:
    """Training examples are read as the exported processor will read them, where there can be one."""
    reason = preprocessor.unserved(context.recipe.model.tiling)
    if reason is None:
        check_processor(built.processor, datasets.training)
    elif context.ranks.first:
        what = f"{reason}: no processor of transformers can serve it, and mmlaunch export will need --no-processor"
        context.events.warn(what, step=0)


def total_steps(recipe: Recipe, datasets: Datasets) -> int:
    """The steps of the run: those of the recipe, or as many as its epochs need."""
    examples = (recipe.epochs or 1) * len(datasets.training.mixture)
    return recipe.steps or max(1, math.ceil(examples / recipe.batch.examples))


def build_engine(context: Context, built: BuiltModel, steps: int) -> Engine:
    """The engine of the model that is trained."""
    context.ranks.watch.enter(Phase.START)
    context.ranks.watch.doing("builds the engine")
    recipe = context.recipe
    return Engine(
        built.network, recipe.optim, steps, recipe.precision, context.deepspeed, context.ranks, context.position
    )


def build_reference(context: Context) -> Reference | None:
    """The reference model, where it runs at every step; None where there is none, or it is precomputed."""
    recipe, objective = context.recipe, context.recipe.objective
    if not objective.uses_reference or objective.precomputes_reference:
        return None
    copy = objective.reference_copy
    if copy is None:
        return adapter_off
    settings = context.deepspeed
    if copy.stage is not None:
        half = {"enabled": recipe.precision == "bf16" and copy.stage > 0}
        settings = {**settings, "bf16": half, "zero_optimization": {"stage": copy.stage}}
    network = build_reference_network(context, settings)
    return ReferenceCopy(network, recipe.precision, settings, copy.sync, context.ranks.first)


def build_reference_network(context: Context, settings: dict[str, Any]) -> nn.Module:
    """The policy as it began. The run keeps its weights, for attempts that no longer find where they came from."""
    ranks, recipe = context.ranks, context.recipe
    name = ranks.from_first(pins.pinned(context, pins.REFERENCE_WEIGHTS) if ranks.first else None)
    if lost := pins.lost_source(context):
        network = build_network(without_init(recipe), settings).network
        if name is None or not keep_frozen.load(context, network, name):
            raise BadInput(f"{lost}, and the reference model began with it; put it back as it was")
        return network
    network = build_network(recipe, settings).network
    if name is None and keep_frozen.copies(context):
        name = keep_frozen.keep_network(context, network, "the reference model")
        pins.pin(context, pins.REFERENCE_WEIGHTS, name)
    return network


def build_learner(
    context: Context, engine: Engine, datasets: Datasets, reference: Reference | None
) -> ObjectiveLearner:
    """The learner of methods with one engine and one objective."""
    objective = objective_of(context.recipe.objective, reference, datasets.training.mixture.std)
    synced = reference if isinstance(reference, ReferenceCopy) and reference.changes else None
    return ObjectiveLearner(engine, objective, context.ranks, synced)


def build_services(
    context: Context,
    learner: Learner,
    evaluation: Evaluation,
    state: TrainState,
    steps: int,
    flops: mfu.ModelFlops | None,
    memory: MemoryTier | None = None,
) -> Services:
    """What goes on around the steps, from the step that the attempt begins at."""
    recipe, ranks = context.recipe, context.ranks
    finished = state.step >= steps  # then this attempt only measures the result again
    evaluating = [recipe.evaluate.every] if recipe.evaluate.every else []
    return Services(
        checkpoints=CheckpointWriter(context, learner.engines, rejected_steps(context, state), memory),
        evaluation=evaluation,
        boundary=Boundary(
            ranks,
            context.stop,
            saving=Interval(recipe.checkpoint.every, None if memory and memory.resumed is not None else state.step),
            evaluating=Interval(evaluating, None if finished else state.evaluated, recipe.evaluate.first),
        ),
        curves=build_curves(context, state.step, finished),
        throughput=Throughput(ranks, recipe.batch.examples, recipe.batch.tokens_per_gpu, flops),
        guard=NonFiniteGuard(context),
        profiler=build_profiler(context),
    )


def build_profiler(context: Context) -> Profiler:
    """What traces steps of this rank."""
    script = context.attempt.script  # written just before the attempt began
    began = script.stat().st_mtime if script.exists() else 0.0
    say = partial(print, flush=True)
    return Profiler(context.paths, context.ranks.rank, context.recipe.profile, say, began)


def build_curves(context: Context, resumed: int, again: bool) -> Curves:
    """TensorBoard and the trackers of the recipe; `resumed` and `again` as for TensorBoard."""
    recipe, first, warn = context.recipe, context.ranks.first, context.events.warn
    board = TensorBoardWriter(context.paths.tensorboard, recipe.log.tensorboard and first, resumed, again, warn)
    return Curves(board, open_trackers(recipe, context.paths, resumed, first, warn))


def introduce(context: Context, built: BuiltModel, datasets: Datasets, parameters: dict[str, dict[str, int]]) -> None:
    """Say in the ledger and in the log what is about to be trained, and how."""
    events, packed = context.events, datasets.training.packed
    rows = f"packed rows, {trees.kind(built.network) or 'by positions'}" if packed else "padded rows"
    checkpointing = bool(built.network.is_gradient_checkpointing)
    events.write(
        "ready", world=context.ranks.world, parameters=parameters, attention=rows,
        activation_checkpointing=checkpointing,
    )  # fmt: skip
    for part, numbers in parameters.items():
        events.log(f"{part:<12}{numbers['trainable']:>14,} trainable{numbers['frozen']:>14,} frozen")
    events.log(f"training    {datasets.training.mixture}")
    events.log(f"evaluation  {datasets.evaluation.mixture}")
    if datasets.longer_than_row:
        count = datasets.longer_than_row
        what = f"{count} training examples are longer than batch.tokens_per_gpu: their prompt and all answers"
        events.warn(f"{what} are a row of their own, which needs more memory", step=0)
    events.log(f"attention   {rows}; activation checkpointing {'on' if checkpointing else 'off'}")
