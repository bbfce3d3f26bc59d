"""Collecting a rollout: all ranks generate answers together, score them, and measure what they are learnt with."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mmjobs.data.batch import Batch
from mmjobs.engine.engine import Engine
from mmjobs.model.sampling import Draws
from mmjobs.objectives.forward import answer_log_probs
from mmjobs.objectives.objective import Reference
from mmjobs.objectives.policy import OLD, REFERENCE
from mmjobs.objectives.value import VALUE, values_and_last
from mmjobs.rank.context import Context
from mmjobs.rollout.generator import Check, Generator
from mmjobs.rollout.learning import BASELINE, LAST
from mmjobs.rollout.parts import Parts
from mmjobs.rollout.rollout import Group, Rollout, of_groups
from mmjobs.rollout.rows import Prompts, Rows
from mmjobs.rollout.scoring import Scorer, sample_of
from mmjobs.rollout.shaping import penalised
from mmlaunch.errors import BadInput
from mmlaunch.recipe.reinforcement import Reinforcement
from mmlaunch.recipe.sampling import Sampling

Minibatches = Sequence[Sequence[int]]
SAMPLES = 3
_TRIES = 20
"""How often a rollout is filled up where damaged images leave it short."""


@dataclass(frozen=True)
class Roles:
    """The models that a rollout is made and measured with."""

    actor: Engine
    critic: Engine | None
    reference: Reference | None
    """At the temperature of the answers."""


@dataclass
class Collected:
    """A rollout, and what there is to know of how it was made."""

    rollout: Rollout
    cursor: int
    """The index of the prompt behind those that were used or dropped."""
    measured: dict[str, float] = field(default_factory=dict)


class Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.monotonic() - begin


class Collector:
    """Makes the rollouts of a run."""

    def __init__(
        self, context: Context, prompts: Prompts, roles: Roles, generator: Generator, scorer: Scorer, rows: Rows
    ) -> None:
        self._context, self._ranks, self._watch = context, context.ranks, context.ranks.watch
        settings = context.recipe.objective
        assert isinstance(settings, Reinforcement)
        self._settings, self.sampling = settings, settings.sampling
        self._prompts, self._roles, self._generator, self._scorer, self._rows = prompts, roles, generator, scorer, rows

    def collect(self, step: int, cursor: int, parts: Parts, check: Check) -> Collected:
        """Generate and score until there are enough groups; those that the recipe drops are replaced by the next ones,
        a few of them at a time."""
        wanted = self._settings.rollouts // self.sampling.answers
        clock, pieces, dropped = Clock(), list[Rollout](), 0
        begin, at, tries = cursor, cursor, 0
        while (missing := wanted - sum(len(piece.prompts) for piece in pieces)) > 0:
            tries += 1
            if tries > (self._settings.groups.tries if self._settings.groups is not None else _TRIES):
                raise BadInput(self._too_few(at - begin, wanted, missing))
            more = missing if tries == 1 else max(missing, self.sampling.prompts)
            with clock.on("generate"):
                groups = self.generate(range(at, at + more), self.sampling, parts, check, step)
            at += more
            if not groups:
                continue
            piece = of_groups(step, groups, self.sampling.max_new_tokens)
            with clock.on("score"):
                self._score(piece, check)
                if getattr(self._settings, "advantage", "") == "remax":
                    self._measure_baseline(piece, parts, check)
            kept = self._kept(piece)
            dropped += len(piece.prompts) - len(kept)
            pieces.append(piece.part(kept))
        rollout = Rollout.joined(pieces).part(range(wanted))
        at = int(rollout.prompts[-1]) + 1  # what is beyond is for the next policy to answer
        measured = self._scorer.measured() | self._generator.measured() | {"prompts_dropped": float(dropped)}
        return Collected(rollout, at, measured | {f"seconds_{name}": value for name, value in clock.seconds.items()})

    def _too_few(self, tried: int, wanted: int, missing: int) -> str:
        groups = self._settings.groups
        if groups is None:
            what = f"{missing} of {wanted} prompts of a rollout have images that cannot be read after {_TRIES} tries"
            return f"data.train: {what}; see data/skipped.jsonl in the run directory"
        what = f"the answers to {tried - (wanted - missing)} of {tried} prompts all failed or all succeeded"
        right = "choose prompts of other difficulty, raise objective.groups.tries, or remove objective.groups"
        return f"objective.groups: {what}: no rollout of {wanted} groups after {groups.tries} tries; {right}"

    def of_prompts(self, prompts: Prompts) -> Collector:
        """The same for other prompts."""
        return Collector(self._context, prompts, self._roles, self._generator, self._scorer, self._rows)

    def generate(
        self,
        indices: Sequence[int],
        sampling: Sampling,
        parts: Parts,
        check: Check,
        step: int | None = None,
        prefix: str = "answers",
    ) -> list[Group]:
        """The answers to these prompts, in their order; prompts with a damaged image have none.

        Each batch of prompts is generated as a whole by one rank, so its answers do not depend on the world.
        """
        batches = {
            f"{prefix}-{indices[i]}-{len(indices[i : i + sampling.prompts])}": indices[i : i + sampling.prompts]
            for i in range(0, len(indices), sampling.prompts)
        }
        sealed = self._ranks.from_first({name: parts.read(name) for name in batches} if self._ranks.first else None)
        done: dict[str, list[Group]] = {name: groups for name, groups in sealed.items() if groups is not None}
        waiting = [name for name in batches if name not in done]
        self._watch.doing("generates answers", "pieces of them")
        with self._generator.ready(check):
            for wave in range(0, len(waiting), self._ranks.world):
                own = waiting[wave + self._ranks.rank : wave + self._ranks.rank + 1]
                check()
                made = {name: self._batch(batches[name], sampling, check) for name in own}
                if not own:
                    self._batch((), sampling, check)
                for name, groups in made.items():
                    parts.add(name, groups)
                for of_rank in self._ranks.gather(made):
                    done |= of_rank
                total, new = len(batches), wave + self._ranks.world
                if step is not None:
                    counts = {"done": len(done), "total": total, "new": min(new, len(waiting))}
                    self._context.events.write("generated", step=step, **counts)
        return [group for name in batches for group in done[name]]

    def _batch(self, indices: Sequence[int], sampling: Sampling, check: Check) -> list[Group]:
        usable = self._prompts.usable(indices)
        self._context.position.samples = tuple(self._prompts.origins(usable))
        draws = [
            Draws(self._context.recipe.seed, index, number) for index in usable for number in range(sampling.answers)
        ]

        def tick(running: bool) -> bool:
            check()
            return self._ranks.any(running)

        answers = self._generator.answer(self._prompts, usable, draws, sampling, tick)
        self._context.position.samples = ()
        n = sampling.answers
        return [Group(index, tuple(answers[place * n : place * n + n])) for place, index in enumerate(usable)]

    def _score(self, rollout: Rollout, check: Check) -> None:
        self._watch.doing("scores answers", "answers")
        rollout.scores = self._scorer.score(rollout, self._prompts, self._rows, check)

    def _measure_baseline(self, rollout: Rollout, parts: Parts, check: Check) -> None:
        """ReMax compares with the likeliest answer to each prompt."""
        greedy = self.sampling.model_copy(update={"temperature": 0.0, "answers": 1})
        indices = [int(index) for index in rollout.prompts]
        groups = self.generate(indices, greedy, parts, check, rollout.step, "greedy")
        baseline = of_groups(rollout.step, groups, greedy.max_new_tokens)
        scores = self._scorer.score_aside(baseline, self._prompts, self._rows.of_prompts(self._prompts, 1), check)
        penalties = baseline.lengths.double(), baseline.ended, greedy.max_new_tokens, self._settings.shaping
        rollout.numbers[BASELINE] = penalised(scores, *penalties).repeat_interleave(rollout.answers)[:, None]

    def _kept(self, rollout: Rollout) -> list[int]:
        """The groups that something can be learnt from, where the recipe drops the others."""
        groups = self._settings.groups
        if groups is None:
            return list(range(len(rollout.prompts)))
        means = rollout.scores.view(-1, rollout.answers).nanmean(1)
        return [number for number, mean in enumerate(means.tolist()) if groups.low < mean < groups.high]

    def measure(self, rollout: Rollout, minibatches: Minibatches, old: bool, check: Check) -> dict[str, float]:
        """Add the log-probabilities of the policy and of the reference, and the critic's values, to a rollout.

        They are computed in the rows of these mini-batches, which are learnt from next: then the first ratio is 1.
        """
        clock = Clock()
        with clock.on("measure"):
            self._watch.doing("measures answers", "rows")
            own: list[tuple[list[int], dict[str, torch.Tensor]]] = []
            for groups in minibatches if old or self._roles.critic or self._roles.reference else ():
                for row in self._rows.of_rank(rollout, groups):
                    check()
                    own.append((self._rows.answers_of(row), self._numbers(self._rows.batch(rollout, row), old)))
                    self._watch.moved()
            for of_rank in self._ranks.gather(own):
                for answers, numbers in of_rank:
                    for name, values in numbers.items():
                        rollout.put(name, answers, values)
        return {f"seconds_{name}": value for name, value in clock.seconds.items()}

    def _numbers(self, batch: Batch, old: bool) -> dict[str, torch.Tensor]:
        reference, critic = self._roles.reference, self._roles.critic

        def of_policy(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
            computed = answer_log_probs(network, batch, temperature=self.sampling.temperature).values
            return {OLD: computed} | ({REFERENCE: reference(network, batch)} if reference else {})

        numbers = self._roles.actor.compute(batch, of_policy) if old or reference else {}
        if critic is not None:
            numbers[VALUE], numbers[LAST] = critic.compute(batch, values_and_last)
        return {name: values.double().cpu() for name, values in numbers.items()}


def samples(rollout: Rollout, prompts: Prompts, most: int = SAMPLES) -> list[dict[str, Any]]:
    """Some answers with their scores, for people to read: the first to prompts that are spread over the rollout."""
    chat, last = prompts.examples.processor.chat, len(rollout.prompts) - 1
    shown = []
    for group in sorted({round(number * last / max(1, most - 1)) for number in range(most)}):
        answer, score = group * rollout.answers, float(rollout.scores[group * rollout.answers])
        one = sample_of(rollout, answer, prompts, chat)
        named = {"question": one.prompt, "truth": one.truth, "answer": one.answer, "origin": one.origin}
        shown.append({**named, "ended": one.finished, "score": None if math.isnan(score) else round(score, 4)})
    return shown
