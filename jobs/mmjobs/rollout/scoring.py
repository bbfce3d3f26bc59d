"""Scoring: the weighted sum of all rewards of each answer, by all ranks together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from mmjobs.data.chat import Chat
from mmjobs.model.generate import Generated, answer_text
from mmjobs.rank.ranks import Ranks
from mmjobs.rollout.reward_model import RewardModel
from mmjobs.rollout.rewards.score import Sample, Score
from mmjobs.rollout.rewards.workers import RewardWorkers
from mmjobs.rollout.rollout import Rollout
from mmjobs.rollout.rows import Prompts, Rows
from mmlaunch.errors import BadInput
from mmlaunch.recipe.rewards import RewardSource

KINDS = ("right", "wrong", "unparsed", "timeout", "error")
"""What is shown of what functions say; the rest are scores without a verdict."""
_NAMED = 5
"""So many failed samples are named in an error."""


@dataclass
class Scorer:
    """The sources of rewards, each with its weight."""

    ranks: Ranks
    functions: Sequence[tuple[RewardSource, RewardWorkers]]
    models: Sequence[tuple[RewardSource, RewardModel]]
    max_failed: float
    """The share of answers that functions may fail to score."""
    kinds: Counter[str] = field(default_factory=Counter)
    """How many answers functions called what since it was last read; `answers` counts all of them."""

    def score(self, rollout: Rollout, prompts: Prompts, rows: Rows, check: Callable[[], None]) -> torch.Tensor:
        """The score of each answer; NaN where a source has none: [A]"""
        total = torch.zeros(len(rollout.lengths), dtype=torch.float64)
        for source, model in self.models:
            total += source.weight * self._by_model(model, rollout, rows, check)
        if self.functions:
            total += self._by_functions(rollout, prompts, check)
        return total

    def _by_model(self, model: RewardModel, rollout: Rollout, rows: Rows, check: Callable[[], None]) -> torch.Tensor:
        scores = torch.full((len(rollout.lengths),), torch.nan, dtype=torch.float64)
        mine: list[tuple[list[int], list[float]]] = []
        for row in rows.of_rank(rollout, range(len(rollout.prompts))):
            check()
            mine.append((rows.answers_of(row), list(model(rows.batch(rollout, row)))[: len(rows.answers_of(row))]))
            self.ranks.watch.moved()
        for of_rank in self.ranks.gather(mine):
            for answers, values in of_rank:
                scores[answers] = torch.tensor(values, dtype=torch.float64)
        return scores

    def _by_functions(self, rollout: Rollout, prompts: Prompts, check: Callable[[], None]) -> torch.Tensor:
        mine = range(self.ranks.rank, len(rollout.lengths), self.ranks.world)
        chat = prompts.examples.processor.chat
        samples = [sample_of(rollout, answer, prompts, chat) for answer in mine]
        values = [0.0] * len(samples)
        kinds: Counter[str] = Counter(answers=len(samples))
        failed: list[str] = []
        for source, workers in self.functions:
            scores = workers.score(samples, self.ranks.watch.moved)
            kinds.update(score.kind for score in scores)
            failed += [score.detail for score in scores if score.failed]
            for place, score in enumerate(scores):
                values[place] += source.weight * _value(score)
        check()
        total = torch.zeros(len(rollout.lengths), dtype=torch.float64)
        of_this = Counter[str]()
        details: list[str] = []
        for places, found, counts, reasons in self.ranks.gather((list(mine), values, kinds, failed[:_NAMED])):
            total[places] = torch.tensor(found, dtype=torch.float64)
            of_this += counts
            details += reasons
        self.kinds += of_this
        self._check_failed(of_this, details)
        return total

    def _check_failed(self, kinds: Counter[str], details: Sequence[str]) -> None:
        failed, all_scores = kinds["timeout"] + kinds["error"], kinds["answers"] * len(self.functions)
        if failed > self.max_failed * all_scores:
            what = f"{failed} of {all_scores} scores failed, more than objective.max_failed ({self.max_failed:.0%})"
            raise BadInput(f"objective.rewards: {what}: {'; '.join(details[:_NAMED])}")

    def counts(self) -> dict[str, float]:
        """The shares of what functions called the answers since this was last asked."""
        kinds, self.kinds = self.kinds, Counter()
        if not kinds["answers"]:
            return {}
        return {kind: kinds[kind] / (kinds["answers"] * len(self.functions)) for kind in KINDS}


def sample_of(rollout: Rollout, answer: int, prompts: Prompts, chat: Chat) -> Sample:
    """An answer as a reward function gets it."""
    index, ended = int(rollout.prompts[answer // rollout.answers]), bool(rollout.ended[answer])
    return Sample(
        prompt=prompts.text(index),
        answer=answer_text(chat, Generated(rollout.tokens(answer), [], ended)),
        truth=prompts.truth(index),
        origin=prompts.origin(index),
        finished=ended,
    )


def _value(score: Score) -> float:
    return float("nan") if score.value is None else score.value
