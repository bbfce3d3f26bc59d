"""The sizes of a toy: a few steps, small batches and short answers on this machine's CPU; all that they need to fit."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from string import ascii_letters
from typing import Any

from mmlaunch.recipe import Recipe
from mmlaunch.recipe.compared import Correctness
from mmlaunch.recipe.inference import DropoutNtp, Generating, Inference, Score
from mmlaunch.recipe.reinforcement import Ppo, Reinforcement
from mmlaunch.recipe.scalars import format_duration

STEPS, TOKENS, ANSWERS, EXAMPLES, SHARDS, TIME = 2, 8, 4, 2, 2, 3600
"""Steps; tokens and number of answers; examples of a rank; shards; the time limit."""
Change = tuple[str, Any, Any]
"""A field, what the recipe says, and what the toy says."""
OWN = (
    "steps", "epochs", "batch.global", "batch.micro", "data.workers", "log.every", "resources.tasks_per_node",
    "resources.time", "objective.rollouts", "objective.sampling.answers", "objective.sampling.max_new_tokens",
    "objective.shards", "objective.window", "restarts.crash",
)  # fmt: skip
"""The sizes that `-s` gives to the toy itself, and not to the recipe."""


def sizes(recipe: Recipe, given: Collection[str]) -> Iterator[Change]:
    """What changes, without the sizes that the user has `given`: they are the toy's own."""
    ranks = min(2, recipe.resources.world)
    yield from _machine(recipe, ranks)
    if recipe.trains:
        yield from _length(recipe, given)
        yield from _batch(recipe, ranks)
    yield from _answers(recipe)
    yield from _shards(recipe)


def _machine(recipe: Recipe, ranks: int) -> Iterator[Change]:
    own = recipe.resources
    yield "resources.nodes", own.nodes, 1
    yield "resources.gpus_per_node", own.gpus_per_node, 0
    yield "resources.tasks_per_node", own.tasks_per_node, ranks
    if own.time > TIME:
        yield "resources.time", format_duration(own.time), format_duration(TIME)
    for name in ("partition", "account", "qos", "memory", "cpus_per_rank", "begin", "after"):
        yield f"resources.{name}", getattr(own, name), None
    yield "data.workers", recipe.data.workers, min(recipe.data.workers, 1)
    yield "deepspeed.offload", recipe.deepspeed.offload, "none"
    if recipe.precision == "fp16":  # needs a GPU
        yield "precision", "fp16", "bf16"
        if recipe.model.weights == "fp16":
            yield "model.weights", "fp16", "auto"
    names = [name for name in recipe.passed if name not in os.environ]
    yield "env", recipe.env, [entry for entry in recipe.env if entry not in names]
    yield "restarts.crash", recipe.restarts.crash, 0
    yield "log.every", recipe.log.every, 1
    if recipe.push_to is not None:
        yield "push_to.at_end", recipe.push_to.at_end, False


def _length(recipe: Recipe, given: Collection[str]) -> Iterator[Change]:
    yield "epochs", recipe.epochs, None
    yield "steps", recipe.steps, None if "epochs" in given else _steps(recipe)
    warmup = recipe.optim.warmup.steps
    if warmup is not None and warmup > STEPS:
        yield "optim.warmup", str(recipe.optim.warmup), "1 steps"


def _steps(recipe: Recipe) -> int:
    """A few; of what learns from its own answers as many that it answers once more after an update."""
    objective = recipe.objective
    return _per_round(recipe) * min(objective.epochs, 2) + 1 if isinstance(objective, Reinforcement) else STEPS


def _per_round(recipe: Recipe) -> int:
    """The batches of a round of answers; several stay several."""
    objective = recipe.objective
    return min(2, objective.rollouts // recipe.batch.examples) if isinstance(objective, Reinforcement) else 1


def _batch(recipe: Recipe, ranks: int) -> Iterator[Change]:
    objective, group = recipe.objective, 1
    if isinstance(objective, Reinforcement):
        group = min(objective.sampling.answers, ANSWERS)
    examples = ranks * max(group, EXAMPLES)
    yield "batch.global", recipe.batch.examples, examples
    if recipe.batch.micro is not None:
        yield "batch.micro", recipe.batch.micro, group
    if isinstance(objective, Reinforcement):
        yield "objective.rollouts", objective.rollouts, _per_round(recipe) * examples


def _answers(recipe: Recipe) -> Iterator[Change]:
    task = recipe.objective
    if not isinstance(task, (Reinforcement, Generating)):
        return
    own = task.sampling
    yield "objective.sampling.max_new_tokens", own.max_new_tokens, min(own.max_new_tokens, TOKENS)
    yield "objective.sampling.min_new_tokens", own.min_new_tokens, min(own.min_new_tokens, TOKENS - 1)
    yield "objective.sampling.answers", own.answers, min(own.answers, ANSWERS)
    if not isinstance(task, Reinforcement):
        return
    if (overlong := task.shaping.overlong) is not None:
        yield "objective.shaping.overlong.margin", overlong.margin, min(overlong.margin, TOKENS // 2)
    if task.groups is not None:  # all answers of a toy are wrong: none of its groups may be dropped for that
        yield "objective.groups.low", task.groups.low, -1e9
        yield "objective.groups.high", task.groups.high, 1e9
    yield "objective.engine", task.engine and task.engine.kind, None
    yield "objective.epochs", task.epochs, min(task.epochs, 2)
    if isinstance(task, Ppo):
        yield "objective.critic.warmup_steps", task.critic.warmup_steps, min(task.critic.warmup_steps, 1)
        yield "objective.critic.offload", task.critic.offload, task.critic.offload and "none"


def _shards(recipe: Recipe) -> Iterator[Change]:
    task = recipe.objective
    if isinstance(task, Inference):
        yield "objective.shards", task.shards, min(task.shards, SHARDS)
        yield "objective.window", task.window, min(task.window, task.batch)


def fruitful(recipe: Recipe) -> Iterator[Change]:
    """What makes sure that rows are made for a later stage: a random model is never right, and hardly ever better."""
    task = recipe.objective
    if isinstance(task, Correctness):
        names = ", ".join(source.metric for source in task.reward_sources)
        yield "objective.metric", names, {"function": "length", "options": {"target": 12}}
        yield "objective.right", task.right, 0.5
    if isinstance(task, DropoutNtp):  # a random model hardly ever ends an answer, and one that is cut makes no pair
        yield "objective.sampling.stop", list(task.sampling.stop), [*task.sampling.stop, *ascii_letters]
    if isinstance(task, Score):
        yield "objective.gap", task.gap, 0.0
        yield "objective.least", task.least, None if task.least is None else -1e9
