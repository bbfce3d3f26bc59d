"""Setup of reinforcement learning: its roles, its rewards, the source of its rollouts, and the trainer."""

from __future__ import annotations

import math
import os
from functools import partial
from typing import Any

import torch

from mmjobs.checkpoint import memory_tier
from mmjobs.checkpoint.resume import resume
from mmjobs.checkpoint.retention import rollouts_in_use
from mmjobs.engine.engine import Engine
from mmjobs.engine.reference_copy import ReferenceCopy
from mmjobs.metrics import mfu
from mmjobs.model import parts, served
from mmjobs.model.build import BuiltModel
from mmjobs.model.heads import SCORE
from mmjobs.model.sharded import whole
from mmjobs.model.vision_memory import VisionMemory
from mmjobs.objectives.adapter_off import adapter_off
from mmjobs.objectives.objective import Reference
from mmjobs.objectives.policy import Policy
from mmjobs.objectives.value import Value
from mmjobs.rank.context import Context
from mmjobs.rank.watchdog import Phase
from mmjobs.rollout.collect import Collector, Roles
from mmjobs.rollout.external.external import External
from mmjobs.rollout.generator import Generator, InProcess
from mmjobs.rollout.reward_model import RewardModel
from mmjobs.rollout.rewards.workers import RewardWorkers
from mmjobs.rollout.rows import Prompts, Rows
from mmjobs.rollout.scoring import Scorer
from mmjobs.rollout.source import RolloutSource
from mmjobs.train import pins, skipped_rows
from mmjobs.train.datasets import Datasets, build_datasets
from mmjobs.train.evaluate_rollouts import RolloutEvaluation
from mmjobs.train.learner import ObjectiveLearner
from mmjobs.train.policy import PolicyLearner
from mmjobs.train.reward_models import build_kept_reward_network, shared_reward_model
from mmjobs.train.setup import (
    build_engine,
    build_model,
    build_network,
    build_reference_network,
    build_services,
    check_served,
    introduce,
)
from mmjobs.train.source import DatasetSource
from mmjobs.train.trainer import Trainer
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.reinforcement import Ppo, Reinforcement
from mmlaunch.recipe.requirements import Requirements
from mmlaunch.recipe.rewards import RewardSource
from mmlaunch.recipe.sampling import LAYERED


def build_policy_trainer(context: Context) -> Trainer:
    """Everything that one attempt needs, in the order in which one piece needs the others."""
    settings, ranks, seen = settings_of(context.recipe), context.ranks, VisionMemory()
    built, memory = build_model(context), memory_tier.build(context)
    seen.serve(built.network)
    parameters, flops = parts.counts(built.network), mfu.model_flops(built.network, context.recipe.precision)
    datasets = build_datasets(context, built)
    check_served(context, built, datasets)
    steps = total_steps(context.recipe, datasets)
    actor = ObjectiveLearner(build_engine(context, built, steps), Policy(settings), ranks)
    critic, head = build_critic(context, steps, seen)
    roles = Roles(actor.engine, critic.engine if critic else None, build_reference(context, seen))
    prompts = Prompts(datasets.training, seen, partial(skipped_rows.add, context.paths))
    rows = Rows(prompts, context.recipe.batch, settings.sampling.answers, ranks)
    scorer = build_scorer(context, built, seen, critic, head)
    generator = build_generator(context, built, roles.actor, datasets.training.mixture.has_images)
    collector = Collector(context, prompts, roles, generator, scorer, rows)
    source = RolloutSource(
        context, prompts, collector, rows,
        policy_digest=lambda: _digest(roles),
        set_kl_weight=partial(setattr, actor.objective, "kl_weight"),
        needed=partial(rollouts_in_use, context.paths, *([memory.paths] if memory else [])),
        sft=build_sft(context, built, steps),
    )  # fmt: skip
    alone = settings.critic.warmup_steps if isinstance(settings, Ppo) else 0
    learner = PolicyLearner(context, actor, critic, source, alone)
    ranks.watch.enter(Phase.START)
    ranks.watch.doing("looks for a checkpoint")
    state = resume(context, learner.engines, memory)
    if state.step:
        source.restore(state.source)
    introduce(context, built, datasets, parameters)
    evaluation = RolloutEvaluation(context, datasets.evaluation, collector, scorer, rows, seen)
    services = build_services(context, learner, evaluation, state, steps, flops, memory)
    return Trainer(context, source, learner, services, state, steps)


def build_generator(context: Context, built: BuiltModel, actor: Engine, blank: bool) -> Generator:
    """What answers prompts: this process, or the servers of an external engine."""
    settings = settings_of(context.recipe)
    if settings.engine is None:
        return InProcess(actor, built.chat, settings.sampling, blank, layered=LAYERED in os.environ)
    context.ranks.watch.enter(Phase.START)
    context.ranks.watch.doing("waits for the engine's servers")
    if context.ranks.first:
        served.introduce(built, context.recipe.precision, context.paths.served)
    return External(context, actor, built, settings)


def settings_of(recipe: Recipe) -> Reinforcement:
    """The objective of a recipe that learns from rollouts."""
    assert isinstance(recipe.objective, Reinforcement)
    return recipe.objective


def total_steps(recipe: Recipe, datasets: Datasets) -> int:
    """Those of the recipe, or as many as its epochs over the prompts need."""
    settings = settings_of(recipe)
    answers = (recipe.epochs or 1) * len(datasets.training.mixture) * settings.sampling.answers
    rounds = max(1, math.ceil(answers / settings.rollouts))
    return recipe.steps or rounds * settings.epochs * (settings.rollouts // recipe.batch.examples)


def _digest(roles: Roles) -> str:
    return "-".join(engine.digest() for engine in (roles.actor, roles.critic) if engine is not None)


def build_reference(context: Context, seen: VisionMemory) -> Reference | None:
    """The policy without its adapter, a copy, or none where nothing is compared with it."""
    recipe, settings = context.recipe, settings_of(context.recipe)
    if not settings.kl.used:
        return None
    temperature = settings.sampling.temperature
    if settings.reference == "adapter off" or (settings.reference is None and recipe.model.learns_adapter_alone):
        return partial(adapter_off, temperature=temperature)
    zero = with_stage(context.deepspeed, recipe, settings.reference_stage)
    network = build_reference_network(context, zero)
    seen.serve(network.requires_grad_(False))
    return ReferenceCopy(network, recipe.precision, zero, None, context.ranks.first, temperature)


def with_stage(
    settings: dict[str, Any], recipe: Recipe, stage: int | None, offload: str | None = None
) -> dict[str, Any]:
    """DeepSpeed's configuration for a model with a ZeRO stage and an offload of its own; None: the policy's."""
    zero = dict(settings["zero_optimization"])
    stage = zero["stage"] if stage is None else stage
    if offload is not None:
        zero = {name: value for name, value in zero.items() if not name.startswith("offload_")}
        kinds = {"none": (), "optimizer": ("optimizer",), "all": ("optimizer", "param")}[offload]
        zero |= {f"offload_{kind}": {"device": "cpu", "pin_memory": True} for kind in kinds}
    zero["stage"] = stage
    half = {"enabled": recipe.precision == "bf16" and stage > 0}
    return {**settings, "bf16": {**settings.get("bf16", {}), **half}, "zero_optimization": zero}


def build_critic(
    context: Context, steps: int, seen: VisionMemory
) -> tuple[ObjectiveLearner | None, torch.Tensor | None]:
    """A value model of the policy's shape, from the reward model or the policy; None for methods without one.

    Beside it the head that it starts with, before it is set to 0: that of the reward model, where it starts there.
    """
    recipe, settings = context.recipe, settings_of(context.recipe)
    if not isinstance(settings, Ppo):
        return None, None
    context.ranks.watch.enter(Phase.START)
    context.ranks.watch.doing("builds the critic")
    own, models = settings.critic, settings.models_of_rewards
    if models and own.init_from != "policy":
        start, lost = models[0].path, pins.lost_reward(context, pins.reward_field(recipe, models[0]))
    else:
        start, lost = recipe.model.init_from, pins.lost_source(context)
    start = None if lost else start  # its own checkpoint is read over it
    model = recipe.model.model_copy(update={"init_from": start})
    optim = recipe.optim.model_copy(update={"lr": own.lr or recipe.optim.lr})
    zero = with_stage(context.deepspeed, recipe, own.stage, own.offload)
    critic = build_network(recipe.model_copy(update={"model": model}), zero, scoring_head=True)
    seen.serve(critic.network)
    weight = critic.network.get_parameter(f"{SCORE}.weight")
    with torch.no_grad(), whole([weight]):
        head = weight.detach().clone()
        weight.zero_()
    engine = Engine(critic.network, optim, steps, recipe.precision, zero, context.ranks, context.position)
    return ObjectiveLearner(engine, Value(settings.value_clip), context.ranks), head


def build_scorer(
    context: Context,
    built: BuiltModel,
    seen: VisionMemory,
    critic: ObjectiveLearner | None = None,
    head: torch.Tensor | None = None,
) -> Scorer:
    """The reward functions in processes of their own, and the reward models; the first of them may be the critic
    without its adapter, with this head."""
    settings = settings_of(context.recipe)
    context.ranks.watch.enter(Phase.START)
    context.ranks.watch.doing("prepares the rewards")
    functions = []
    for source in settings.rewards:
        if source.function is not None:
            workers = RewardWorkers(source, 2, context.paths)
            workers.check()
            functions.append((source, workers))
    sources, models = settings.models_of_rewards, list[tuple[RewardSource, RewardModel]]()
    if isinstance(settings, Ppo) and settings.critic.shares_reward_model and critic is not None and head is not None:
        models.append((sources[0], shared_reward_model(context, sources[0], critic.engine, head)))
    models += [(source, _reward_model(context, source, built, seen)) for source in sources[len(models) :]]
    return Scorer(context.ranks, functions, models, settings.max_failed)


def _reward_model(context: Context, source: RewardSource, policy: BuiltModel, seen: VisionMemory) -> RewardModel:
    """The frozen model of a reward run or of its export; it reads what the policy writes."""
    built = build_kept_reward_network(context, source)
    _check_same_words(source, built.model, policy)
    seen.serve(built.model.network.requires_grad_(False))
    return built.frozen(context)


def _check_same_words(source: RewardSource, reward: BuiltModel, policy: BuiltModel) -> None:
    """A reward model reads the policy's tokens and pixels: both must mean the same by them."""
    one, other = reward.chat.tokenizer, policy.chat.tokenizer
    different = []
    if one.get_vocab() != other.get_vocab():
        different.append("tokenizer")
    if one.chat_template != other.chat_template:
        different.append("chat template")
    if _plainly(reward.pixels) != _plainly(policy.pixels):
        different.append("images")
    if different:
        what = f"the reward model {source.path} has another {' and '.join(different)} than the policy"
        raise BadInput(f"objective.rewards: {what}; train it from the policy's own model")


def _plainly(pixels: object) -> dict[str, Any]:
    """What decides about pixels and image tokens, of what can be compared."""
    plain = {name: value for name, value in vars(pixels).items() if isinstance(value, (int, float, str, tuple))}
    return {"kind": type(pixels).__name__, **plain}


def build_sft(context: Context, built: BuiltModel, steps: int) -> DatasetSource | None:
    """The batches of supervised loss in the same step, where the recipe gives it a weight."""
    if not settings_of(context.recipe).sft_weight:
        return None
    answered = Requirements(least=1, most=1, prompts=False)
    return DatasetSource(context, build_datasets(context, built, answered), steps)
