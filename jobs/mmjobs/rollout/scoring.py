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

_AT_ONCE = 16
"""Answers of a rank that functions score between two looks at signals: a slow one may take its deadline for each."""
_NAMED = 5
"""So many failed samples are named in an error."""


@dataclass
class Scorer:
    """The sources of rewards, each with its weight. A weight of 0 rewards nothing: such a source only measures."""

    ranks: Ranks
    functions: Sequence[tuple[RewardSource, RewardWorkers]]
    models: Sequence[tuple[RewardSource, RewardModel]]
    max_failed: float
    """The share of answers that functions may fail to score."""
    _kinds: Counter[str] = field(default_factory=Counter)
    """How many answers functions called what since it was last read."""
    _sums: dict[str, list[float]] = field(default_factory=dict)
    """By source: the sum of its scores since it was last read, and their number."""

    def score_aside(self, rollout: Rollout, prompts: Prompts, rows: Rows, check: Callable[[], None]) -> torch.Tensor:
        """The same for answers that nothing is learnt from: they are not among what `measured` tells."""
        kinds, sums = Counter(self._kinds), {name: list(values) for name, values in self._sums.items()}
        scores = self.score(rollout, prompts, rows, check)
        self._kinds, self._sums = kinds, sums
        return scores

    def score(self, rollout: Rollout, prompts: Prompts, rows: Rows, check: Callable[[], None]) -> torch.Tensor:
        """The score of each answer; NaN where a source has none: [A]"""
        total = torch.zeros(len(rollout.lengths), dtype=torch.float64)
        for number, (source, model) in enumerate(self.models):
            total = self._with(total, source, number, self._by_model(model, rollout, rows, check))
        if self.functions:
            of_functions = self._by_functions(rollout, prompts, check)
            for number, ((source, _), scores) in enumerate(
                zip(self.functions, of_functions, strict=True), len(self.models)
            ):
                total = self._with(total, source, number, scores)
        return total

    def _with(self, total: torch.Tensor, source: RewardSource, number: int, scores: torch.Tensor) -> torch.Tensor:
        exists = scores[~scores.isnan()]
        sums = self._sums.setdefault(_named(source, number), [0.0, 0.0])
        sums[0], sums[1] = sums[0] + float(exists.sum()), sums[1] + len(exists)
        return total + source.weight * scores if source.weight else total

    def _by_model(self, model: RewardModel, rollout: Rollout, rows: Rows, check: Callable[[], None]) -> torch.Tensor:
        scores = torch.full((len(rollout.lengths),), torch.nan, dtype=torch.float64)
        own: list[tuple[list[int], list[float]]] = []
        for row in rows.of_rank(rollout, range(len(rollout.prompts))):
            check()
            answers = rows.answers_of(row)
            own.append((answers, list(model(rows.batch(rollout, row)))[: len(answers)]))
            self.ranks.watch.moved()
        for of_rank in self.ranks.gather(own):
            for answers, values in of_rank:
                scores[answers] = torch.tensor(values, dtype=torch.float64)
        return scores

    def _by_functions(self, rollout: Rollout, prompts: Prompts, check: Callable[[], None]) -> list[torch.Tensor]:
        """The scores of each function; every rank scores its share of the answers: [A] each"""
        own = range(self.ranks.rank, len(rollout.lengths), self.ranks.world)
        chat = prompts.examples.processor.chat
        scores: list[list[Score]] = [[] for _ in self.functions]
        for begin in range(0, -(-len(rollout.lengths) // self.ranks.world), _AT_ONCE):  # as often on every rank
            check()
            samples = [sample_of(rollout, answer, prompts, chat) for answer in own[begin : begin + _AT_ONCE]]
            for of_function, (_, workers) in zip(scores, self.functions, strict=True):
                of_function += workers.score(samples, self.ranks.watch.moved)
        totals = [torch.full((len(rollout.lengths),), torch.nan, dtype=torch.float64) for _ in self.functions]
        kinds, gathered = Counter[str](), self.ranks.gather((list(own), scores))
        for places, of_rank in gathered:
            for total, of_function in zip(totals, of_rank, strict=True):
                total[places] = torch.tensor([_value(score) for score in of_function], dtype=torch.float64)
                kinds.update(score.kind for score in of_function)
        self._kinds += kinds
        rewarding = [number for number, (source, _) in enumerate(self.functions) if source.weight]
        self._check_failed([score for of_rank in gathered for number in rewarding for score in of_rank[1][number]])
        return totals

    def _check_failed(self, scores: Sequence[Score]) -> None:
        """Of the functions that reward: those that only measure may fail as they like."""
        details, count = [score.detail for score in scores if score.failed], len(scores)
        failed = len(details)
        if failed > self.max_failed * count:
            what = f"{failed} of {count} scores failed, more than objective.max_failed ({self.max_failed:.0%})"
            raise BadInput(f"objective.rewards: {what}: {'; '.join(details[:_NAMED])}")

    def measured(self) -> dict[str, float]:
        """Since this was last read: the mean of each of several sources, and the shares of what functions said."""
        kinds, sums = self._kinds, self._sums
        self._kinds, self._sums = Counter(), {}
        several = {f"reward/{name}": total / count for name, (total, count) in sums.items() if count}
        judged = kinds["right"] + kinds["wrong"] + kinds["unparsed"]
        shares = {kind: kinds[kind] / kinds.total() for kind in ("unparsed", "timeout", "error") if kinds.total()}
        return (several if len(sums) > 1 else {}) | ({"right": kinds["right"] / judged} if judged else {}) | shares


def _named(source: RewardSource, number: int) -> str:
    """`exact`, `score.py:reward`, `model`: what curves are called."""
    return source.function or (f"model-{number}" if number else "model")


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
