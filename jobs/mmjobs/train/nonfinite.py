"""The non-finite guard: steps whose loss or gradient is not finite are left out, and end the run if they go on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import torch

from mmjobs.checkpoint.train_state import TrainState
from mmjobs.data.batch import Batch
from mmjobs.rank.context import Context
from mmjobs.train.learner import Learner, StepResult


class NotFinite(ArithmeticError):
    """A loss or a gradient that is not a finite number. The weights are those of the last good step."""

    def __init__(self, what: str, sample: str | None) -> None:
        self.sample = sample
        super().__init__(what)


class NonFiniteGuard:
    """Judges each step; all ranks come to the same judgement.

    The norm of the gradient is the same everywhere. A loss that is not finite while the gradient is (which a mask can
    do) is known to one rank only: the others learn of it at the next step boundary, and all end together.
    """

    def __init__(self, context: Context) -> None:
        self._context, self._tolerated = context, context.recipe.optim.bad_steps
        self._last: tuple[Sequence[Batch], StepResult] | None = None

    @property
    def failed(self) -> bool:
        """Whether the last step of this rank had a loss that is not finite, and a gradient that is."""
        return self._last is not None and not self._last[1].loss_is_finite and math.isfinite(self._last[1].grad_norm)

    def judge(self, state: TrainState, batches: Sequence[Batch], result: StepResult) -> None:
        """After each step. Raises `NotFinite` when more steps in a row were left out than are tolerated."""
        self._last = batches, result
        if math.isfinite(result.grad_norm):
            state.streak = 0
            return
        loss = result.metrics()["loss"]
        if math.isfinite(loss) and result.rescaled:
            state.streak = 0
            return
        state.streak += 1
        state.left_out += 1
        what, samples = self._describe(state.step, loss)
        if state.streak > self._tolerated:
            often = f", number {state.streak} in a row" if state.streak > 1 else ""
            self._end(what + often, samples)
        self._context.events.warn(f"step {state.step} changes nothing: {what}", step=state.step)

    def fail(self, step: int) -> NoReturn:
        """At the boundary after a step whose loss was not finite on some rank; called by all ranks together."""
        assert self._last is not None
        what, samples = self._describe(step, self._last[1].metrics()["loss"])
        self._end(what, samples)

    def check(self, state: TrainState, learner: Learner) -> None:
        """Before a save after a step that was left out: weights that are not finite are never saved."""
        if state.streak and self._context.ranks.any(not learner.weights_are_finite()):
            raise NotFinite(f"the weights themselves are not finite at step {state.step}", None)

    def _describe(self, step: int, loss: float) -> tuple[str, list[str]]:
        """What is wrong with the last step, and the examples of all ranks that may be the reason."""
        assert self._last is not None
        batches, result = self._last
        if math.isfinite(loss):
            what = f"the gradient of step {step} is not finite"
            suspects = [str(origin) for batch in batches for origin in batch.origins]
        else:
            what, suspects = f"the loss of step {step} is {loss}", result.bad_samples()
        samples = [sample for of_rank in self._context.ranks.gather(suspects) for sample in of_rank]
        shown = ", ".join(samples[:8]) + (f" and {len(samples) - 8} more" if len(samples) > 8 else "")
        return f"{what}; samples: {shown or 'unknown'}", samples

    def _end(self, what: str, samples: Sequence[str]) -> NoReturn:
        self._keep_batches()
        raise NotFinite(f"{what}; the batch is in not-finite/", samples[0] if samples else None)

    def _keep_batches(self) -> None:
        """Each rank writes its own micro-batches, for inspection."""
        assert self._last is not None
        path = self._context.attempt.not_finite_batches(self._context.ranks.rank)
        path.parent.mkdir(exist_ok=True)
        kept = [
            {
                "ids": batch.ids, "targets": batch.targets, "attention": batch.attention, "positions": batch.positions,
                "owners": batch.owners, "image_inputs": batch.image_inputs, "trees": batch.trees,
                "reference": batch.reference, "samples": [str(origin) for origin in batch.origins],
            }
            for batch in self._last[0]
        ]  # fmt: skip
        torch.save(kept, path)
