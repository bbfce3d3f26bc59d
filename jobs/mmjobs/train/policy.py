"""The learner of reinforcement learning: a policy and, for PPO, a critic, each with its engine and its loss."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from mmjobs.checkpoint.saveable import Engines
from mmjobs.data.batch import Batch
from mmjobs.objectives.policy import Policy
from mmjobs.rank.context import Context
from mmjobs.rollout.source import RolloutSource
from mmjobs.train.learner import Learner, ObjectiveLearner, StepResult

CRITIC = "critic"
_GAP = {"fp32": 1e-5, "bf16": 0.05}
"""The largest difference between the log-probabilities of a token, measured before the first step and again in it."""


class PolicyLearner(Learner):
    """Both learn from the same batches; the critic alone in the first steps, where the recipe says so."""

    def __init__(
        self,
        context: Context,
        actor: ObjectiveLearner,
        critic: ObjectiveLearner | None,
        source: RolloutSource,
        critic_alone: int,
    ) -> None:
        """`critic_alone`: how many steps at the beginning train only the critic."""
        self._context, self._actor, self._critic, self._source = context, actor, critic, source
        self._critic_alone = critic_alone if critic is not None else 0

    @property
    def engines(self) -> Engines:
        return {**self._actor.engines, **({CRITIC: self._critic.engine} if self._critic is not None else {})}

    def step(self, batches: Sequence[Batch], step: int) -> StepResult:
        began, of_critic = time.monotonic(), None
        if self._critic is not None:
            of_critic = self._critic.step(batches[: self._source.rows], step)
        if of_critic is not None and step < self._critic_alone:
            return _timed(_prefixed(of_critic), began)
        result = self._actor.step(batches, step)
        self._check_first_ratio(step)
        return _timed(result if of_critic is None else _both(result, of_critic), began)

    def _check_first_ratio(self, step: int) -> None:
        """In the first step after a rollout the policy is still the one that answered: every ratio is 1."""
        objective = self._actor.objective
        assert isinstance(objective, Policy)
        gap, objective.gap = objective.gap, None
        if not self._source.first_of_rollout:
            return
        (largest,) = self._context.ranks.highest(0.0 if gap is None else float(gap))
        if largest > _GAP[self._context.recipe.precision]:
            what = f"the first ratio after a rollout is not 1: log-probabilities differ by up to {largest:.2g}"
            self._context.events.warn(f"{what}; the model does not compute the same twice", step=step + 1)

    def weights_are_finite(self) -> bool:
        return self._actor.weights_are_finite() and (self._critic is None or self._critic.weights_are_finite())

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing is remembered besides the engines."""


def _timed(result: StepResult, began: float) -> StepResult:
    """The same, with the seconds of the update among its metrics."""
    seconds = {"seconds_update": time.monotonic() - began}
    return replace(result, metrics=lambda: result.metrics() | seconds)


def _prefixed(result: StepResult) -> StepResult:
    """A step of the critic alone."""

    def metrics() -> dict[str, float]:
        measured = result.metrics()
        return {"loss": measured["loss"]} | {f"critic/{name}": value for name, value in measured.items()}

    return StepResult(result.lr, result.grad_norm, result.rescaled, result.loss_is_finite, metrics, result.bad_samples)


def _both(actor: StepResult, critic: StepResult) -> StepResult:
    """One step of both: the policy's numbers, and the critic's under names of their own."""

    def metrics() -> dict[str, float]:
        own = {"critic/grad_norm": critic.grad_norm, "critic/lr": critic.lr}
        return actor.metrics() | own | {f"critic/{name}": value for name, value in critic.metrics().items()}

    norms = torch.tensor([actor.grad_norm, critic.grad_norm])
    return StepResult(
        lr=actor.lr,
        grad_norm=actor.grad_norm if bool(norms.isfinite().all()) else float("nan"),
        rescaled=actor.rescaled or critic.rescaled,
        loss_is_finite=actor.loss_is_finite and critic.loss_is_finite,
        metrics=metrics,
        bad_samples=lambda: [*actor.bad_samples(), *critic.bad_samples()],
    )
