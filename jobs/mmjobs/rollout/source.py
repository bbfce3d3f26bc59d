"""The source of reinforcement learning: a rollout, then its mini-batches, again and again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mmjobs.data.batch import Batch
from mmjobs.data.sampler import shuffled
from mmjobs.objectives.policy import ADVANTAGE, OLD, REFERENCE, VALID, WEIGHT
from mmjobs.objectives.value import RETURN, VALUE
from mmjobs.rank.context import Context
from mmjobs.rank.watchdog import Phase
from mmjobs.rollout import parts as parts_of
from mmjobs.rollout.collect import Collector, samples
from mmjobs.rollout.correction import correct
from mmjobs.rollout.generator import Check
from mmjobs.rollout.learning import learn
from mmjobs.rollout.parts import Parts
from mmjobs.rollout.rollout import Rollout
from mmjobs.rollout.rows import Prompts, Rows
from mmjobs.rollout.shaping import KlCoefficient, RunningStatistics
from mmlaunch.errors import BadInput
from mmlaunch.recipe.reinforcement import Reinforcement

_GAP = 0.05
"""A mean difference between generation and training that rounding in bf16 does not explain."""


class SftSource(Protocol):
    """A source of supervised batches."""

    def next_step(self, check: Check) -> Sequence[Batch]: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class RolloutSource:
    """Yields the micro-batches of this rank; a rollout is learnt from `epochs` times, each in another order."""

    def __init__(
        self,
        context: Context,
        prompts: Prompts,
        collector: Collector,
        rows: Rows,
        policy_digest: Callable[[], str],
        set_kl_weight: Callable[[float], None],
        needed: Callable[[], set[int]],
        sft: SftSource | None = None,
    ) -> None:
        """`policy_digest`: of everything that is trained; `set_kl_weight` tells the loss, where KL is part of it;
        `needed`: the steps of the rollouts that checkpoints go on with; `sft`: batches that are learnt from besides."""
        self._sft = sft
        self.rows = 0
        """How many of the micro-batches that were yielded last are of the rollout; they are the first."""
        self._context, self._prompts, self._collector, self._rows = context, prompts, collector, rows
        settings = context.recipe.objective
        assert isinstance(settings, Reinforcement)
        self._settings, self._policy_digest, self._set_kl_weight = settings, policy_digest, set_kl_weight
        self._needed = needed
        self._cursor = self._step = self._position = 0
        self._statistics, self._coefficient = RunningStatistics(), KlCoefficient(settings.kl)
        self._rollout: Rollout | None = None
        self._digest = ""
        self._saving: set[int] = set()
        """The step of the rollout that the newest checkpoint names: it may still be on its way to the disk."""
        self._measured: dict[str, float] = {}
        self._groups = context.recipe.batch.examples // settings.sampling.answers
        self._minibatches = settings.rollouts // context.recipe.batch.examples

    @property
    def first_of_rollout(self) -> bool:
        """Whether the micro-batches that were yielded last are the first that are learnt from their rollout."""
        return self._position == 1

    def next_step(self, check: Check) -> Sequence[Batch]:
        if self._rollout is None or self._position == self._settings.epochs * self._minibatches:
            self._collect(check)
        assert self._rollout is not None
        groups = self._order(self._rollout, self._position)
        self._position += 1
        self._step += 1
        self._set_kl_weight(self._coefficient.value)
        used = (OLD, REFERENCE, ADVANTAGE, VALID, WEIGHT, RETURN, VALUE)
        names = [name for name in used if name in self._rollout.numbers]
        batches = [self._rows.batch(self._rollout, row, names) for row in self._rows.of_rank(self._rollout, groups)]
        self.rows = len(batches)
        return [*batches, *(self._sft.next_step(check) if self._sft is not None else ())]

    def _order(self, rollout: Rollout, position: int) -> list[int]:
        """The groups of a mini-batch; each epoch has its own order."""
        epoch, number = divmod(position, self._minibatches)
        order = shuffled(len(rollout.prompts), "rollout", self._context.recipe.seed, rollout.step, epoch)
        return [int(group) for group in order[number * self._groups : (number + 1) * self._groups]]

    def _collect(self, check: Check) -> None:
        """Make the next rollout, or take up what is left of it from an attempt that was cut short."""
        context, begin = self._context, time.monotonic()
        context.ranks.watch.enter(Phase.ROLLOUT)
        self._prompts.forget()
        parts = Parts(context.paths.rollout(self._step), self._key())
        discarded = context.ranks.from_first(parts.open() if context.ranks.first else None)
        if discarded:
            context.events.warn(f"{discarded} are thrown away in {context.paths.rollout(self._step)}", step=self._step)
        sealed = parts.sealed(self._step)
        if not context.ranks.any(sealed is None) and sealed is not None:
            self._rollout, self._digest, after = sealed
            self._take(after)
            context.events.log(f"rollout of step {self._step} is there already")
        else:
            self._make(parts, check)
        self._position = 0
        if context.ranks.first:
            parts_of.prune(context.paths.rollouts, {self._step, *self._saving, *self._needed()})
        self._measured["seconds_rollout"] = time.monotonic() - begin
        assert self._rollout is not None
        shown = samples(self._rollout, self._prompts) if context.ranks.first else []
        context.events.write("rollout", step=self._step, metrics=self._measured, samples=shown)
        measured = self._measured
        if measured["reward_missing"] == 1:
            context.events.warn("no answer of this rollout has a score: nothing is learnt from it", step=self._step)
        context.events.log(
            f"rollout  step {self._step}  reward {measured['reward']:.3f}  length {measured['length']:.0f}  "
            f"{measured['seconds_rollout']:.1f} s"
        )
        context.ranks.watch.enter(Phase.STEP)

    def _make(self, parts: Parts, check: Check) -> None:
        context, settings = self._context, self._settings
        collected = self._collector.collect(self._step, self._cursor, parts, check)
        self._rollout = rollout = collected.rollout
        needs_old = settings.epochs * self._minibatches > 1 or settings.kl.used or settings.engine is not None
        minibatches = [self._order(rollout, number) for number in range(self._minibatches)]
        measured = self._collector.measure(rollout, minibatches, needs_old, check)
        measured |= learn(rollout, settings, self._statistics, self._coefficient)
        if OLD in rollout.numbers:
            measured |= correct(rollout, None if settings.engine is None else settings.engine.correction)
            if measured["generation_gap"] > _GAP:
                what = f"log-probabilities of the answers and of the trainer differ by {measured['generation_gap']:.2g}"
                context.events.warn(f"{what} on average, where 0.05 is much", step=self._step)
        self._cursor = collected.cursor
        self._measured = collected.measured | measured
        seconds = max(collected.measured.get("seconds_generate", 0.0), 1e-9)
        self._measured["generated_tokens_per_second"] = float(rollout.lengths.sum()) / seconds
        digest = parts.seal(rollout, self._carried()) if context.ranks.first else None
        self._digest = context.ranks.from_first(digest)

    def _key(self) -> dict[str, Any]:
        """What the answers depend on."""
        recipe = self._context.recipe
        text = recipe.model_dump_json(include={"model", "data", "objective", "seed", "precision", "batch"})
        return {
            "policy": self._policy_digest(),
            "recipe": hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
            "world": self._context.ranks.world,
            "prompt": self._cursor,
        }

    def _carried(self) -> dict[str, Any]:
        """What changes with every rollout."""
        statistics = self._statistics
        return {
            "cursor": self._cursor,
            "kl": self._coefficient.state(),
            "statistics": [statistics.count, statistics.mean, statistics.squares],
            "measured": self._measured,
        }

    def _take(self, carried: dict[str, Any]) -> None:
        self._cursor, self._measured = int(carried["cursor"]), dict(carried["measured"])
        self._coefficient.restore(carried["kl"])
        self._statistics = RunningStatistics(*carried["statistics"])

    def metrics(self) -> dict[str, float]:
        """What was measured of the newest rollout."""
        return dict(self._measured)

    def state(self) -> dict[str, Any]:
        """The cursor counts prompts that were used, or dropped; the rollout is named by its step and its content."""
        made = None if self._rollout is None else {"step": self._rollout.step, "digest": self._digest}
        self._saving = set() if self._rollout is None else {self._rollout.step}
        data = self._prompts.examples.mixture.digest
        sft = {} if self._sft is None else {"sft": self._sft.state()}
        return {**self._carried(), "step": self._step, "position": self._position, "rollout": made, "data": data, **sft}

    def restore(self, state: dict[str, Any]) -> None:
        self._take(state)
        if self._sft is not None:
            self._sft.restore(state["sft"])
        self._step, self._position, made = int(state["step"]), int(state["position"]), state["rollout"]
        if made is not None and self._position < self._settings.epochs * self._minibatches:
            folder = self._context.paths.rollout(made["step"])
            self._rollout, self._digest = Rollout.load(folder, made["step"], made["digest"]), made["digest"]
            if self._context.ranks.any(self._rollout is None):
                what = f"the rollout that step {self._step} learns from is gone or damaged: {folder}"
                raise BadInput(f"{what}; restore it, or resume from a checkpoint before it")
        if state.get("data") != self._prompts.examples.mixture.digest:
            what = "the prompts are not those that the run began with: other rows, or another order"
            self._context.events.warn(what, step=self._step)
