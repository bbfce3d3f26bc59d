"""A learner of two engines through the real trainer: the seam that an actor and a critic need."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.jobs.small import PIXELS
from torch import nn

from mmjobs.checkpoint.resume import rejected_steps, resume
from mmjobs.checkpoint.save import CheckpointWriter
from mmjobs.data.batch import Batch, collate
from mmjobs.data.chat import Tokens
from mmjobs.data.encode import Encoded
from mmjobs.data.example import Origin
from mmjobs.engine.engine import Engine
from mmjobs.metrics.curves import Curves
from mmjobs.metrics.profiler import Profiler
from mmjobs.metrics.tensorboard import Sample, TensorBoardWriter
from mmjobs.metrics.throughput import Throughput
from mmjobs.metrics.totals import Totals
from mmjobs.objectives.objective import ObjectiveOutput, Units
from mmjobs.rank.boundary import Boundary, Interval
from mmjobs.rank.context import Context
from mmjobs.tasks import train
from mmjobs.train.learner import StepResult
from mmjobs.train.nonfinite import NonFiniteGuard
from mmjobs.train.trainer import Services, Trainer
from mmlaunch.recipe import Recipe

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
WIDTH = 6


class Network(nn.Module):
    """One number for each token, from its id."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Embedding(32, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.value(torch.tanh(self.hidden(self.table(ids))))[..., 0]  # [B, T]
        return values


class Counting:
    """A source of random rows: the numbers of a step depend on its number alone, and the state is that number."""

    def __init__(self, context: Context) -> None:
        self._ranks, self._count = context.ranks, 0

    def metrics(self) -> dict[str, float]:
        return {}

    def next_step(self, check: Callable[[], None]) -> Sequence[Batch]:
        generator = torch.Generator().manual_seed(1000 * self._count + self._ranks.rank)
        self._count += 1
        return [_batch(torch.randint(1, 32, (2, 5), generator=generator)) for _ in range(2)]

    def state(self) -> dict[str, Any]:
        return {"count": self._count}

    def restore(self, state: dict[str, Any]) -> None:
        self._count = state["count"]


def _batch(rows: torch.Tensor) -> Batch:
    """Each row as the answer behind a prompt of one token."""
    examples = [
        Encoded(
            prompt=Tokens([0], [False]), answers=(Tokens(row, [True] * len(row)),), scores=(None,), image_inputs={},
            origin=Origin("rows", number), unpaired_label=0,
        )
        for number, row in enumerate(rows.tolist())
    ]  # fmt: skip
    return collate(examples, PIXELS, 0)


class ActorAndCritic:
    """The critic learns to predict a target; the actor's loss is weighted by what the critic said, detached."""

    over: tuple[str, ...] = ("tokens",)
    metrics: tuple[str, ...] = ("value",)

    def __init__(self, actor: Engine, critic: Engine, context: Context) -> None:
        self.engines = {"model": actor, "critic": critic}
        self._actor, self._critic, self._ranks = actor, critic, context.ranks
        self._running = 0.0

    def step(self, batches: Sequence[Batch], step: int) -> StepResult:
        tokens = [float(batch.ids.numel()) for batch in batches]
        (total,) = self._ranks.sums(sum(tokens))
        advantages = [self._critic.compute(batch, _values) for batch in batches]
        remaining = iter(advantages)

        def actor_loss(network: nn.Module, batch: Batch) -> ObjectiveOutput:
            return _output((_values(network, batch) - 1) ** 2 * next(remaining).sigmoid())

        def critic_loss(network: nn.Module, batch: Batch) -> ObjectiveOutput:
            return _output((_values(network, batch) - batch.ids / 32) ** 2)

        units: Units = {"tokens": total}
        totals = Totals(self)
        outputs = self._actor.accumulate(batches, actor_loss, units)
        self._critic.accumulate(batches, critic_loss, units)
        for output, count in zip(outputs, tokens, strict=True):
            totals.add(output, {"tokens": count})
        updates = [engine.step(step) for engine in (self._actor, self._critic)]
        totals.reduce(self._ranks)
        self._running = 0.9 * self._running + totals.means()["value"]
        return StepResult(
            lr=updates[0].lr,
            grad_norm=math.hypot(*(update.norm for update in updates)),
            rescaled=False,
            loss_is_finite=totals.loss_is_finite(),
            metrics=lambda: {**totals.means(), "running": self._running},
            bad_samples=list,
        )

    def units(self, batch: Batch) -> Units:
        return {"tokens": float(batch.ids.numel())}

    def __call__(self, network: nn.Module, batch: Batch) -> ObjectiveOutput:
        return _output(_values(network, batch))

    def weights_are_finite(self) -> bool:
        return self._actor.is_finite() and self._critic.is_finite()

    def state(self) -> dict[str, Any]:
        return {"running": self._running}

    def restore(self, state: dict[str, Any]) -> None:
        self._running = state["running"]


def _values(network: nn.Module, batch: Batch) -> torch.Tensor:
    values: torch.Tensor = network(batch.ids)
    return values


def _output(losses: torch.Tensor) -> ObjectiveOutput:
    count = losses.new_tensor(losses.numel())
    return ObjectiveOutput({"tokens": losses.sum()}, losses.detach().sum(1), {"value": (losses.detach().sum(), count)})


class NoEvaluation:
    def __len__(self) -> int:
        return 0

    def measure(self, check: Callable[[], None]) -> dict[str, float]:
        raise AssertionError("there is nothing to measure")

    def samples(self) -> Sequence[Sample]:
        return []


def two_engines() -> None:
    """In a rank: the task trains this learner in the place of the recipe's own."""

    def build(context: Context) -> Trainer:
        recipe, steps = context.recipe, context.recipe.steps or 0
        settings = context.deepspeed
        critic = {**settings, "optimizer": {**settings["optimizer"]}}
        optims = [recipe.optim, recipe.optim.model_copy(update={"lr": 3 * recipe.optim.lr})]
        actor_engine, critic_engine = (
            Engine(Network(seed), optim, steps, recipe.precision, config, context.ranks, context.position)
            for seed, optim, config in zip((1, 2), optims, (settings, critic), strict=True)
        )
        source, learner = Counting(context), ActorAndCritic(actor_engine, critic_engine, context)
        state = resume(context, learner.engines)
        if state.step:
            source.restore(state.source)
            learner.restore(state.learner)
        services = Services(
            checkpoints=CheckpointWriter(context, learner.engines, rejected_steps(context, state)),
            evaluation=NoEvaluation(),
            boundary=Boundary(
                context.ranks, context.stop, Interval(recipe.checkpoint.every, state.step), Interval([], None)
            ),
            curves=Curves(TensorBoardWriter(context.paths.tensorboard, False, state.step)),
            throughput=Throughput(context.ranks, recipe.batch.examples, None, None),
            guard=NonFiniteGuard(context),
            profiler=Profiler(context.paths, context.ranks.rank, None, print),
        )
        return Trainer(context, source, learner, services, state, steps)

    setattr(train, "build_trainer", build)  # noqa: B010  in a rank's own process, which ends


@pytest.mark.parametrize("stage", [0, 1, pytest.param(3, marks=pytest.mark.nightly)])
def test_a_learner_of_two_engines_trains_and_resumes_bit_for_bit(job: Jobs, tiny: Recipes, stage: int) -> None:
    changes: dict[str, Any] = {"deepspeed__stage": stage, "steps": 40, "checkpoint__every": "4 steps"}
    whole, broken = job("whole"), job("broken")
    for run in (whole, broken):
        run.prepare = two_engines
    assert whole.run(tiny(**changes), 2) == [0, 0], whole.log()
    steps = whole.losses()
    assert steps[40][0] < 0.8 * steps[1][0], "it learns"
    broken.start(tiny(**changes), 2)
    broken.when(10, saved=8)
    broken.kill()
    assert broken.run(tiny(**changes), 2) == [0, 0], broken.log()
    assert broken.events("resumed"), "it went on"
    for step, losses in broken.losses().items():
        assert set(losses) == set(steps[step])
    last = [run.events("step")[-1] for run in (whole, broken)]
    assert last[0]["running"] == last[1]["running"] and last[0]["grad_norm"] == last[1]["grad_norm"]
    for name in ("model", "critic"):
        files = [run.paths.checkpoint(40) / name / "model.safetensors" for run in (whole, broken)]
        assert files[0].read_bytes() == files[1].read_bytes()
    both = [(whole.paths.checkpoint(40) / name / "model.safetensors").read_bytes() for name in ("model", "critic")]
    assert both[0] != both[1], "each engine has its own weights"
