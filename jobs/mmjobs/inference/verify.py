"""Verification: reward functions say which answers are right, in processes of their own with a deadline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmjobs.data.example import Example
from mmjobs.inference.inputs import InputRow
from mmjobs.inference.records import Record
from mmjobs.rank.context import Context
from mmjobs.rollout.rewards.score import Sample, Score
from mmjobs.rollout.rewards.workers import RewardWorkers
from mmlaunch.recipe.compared import ALL
from mmlaunch.recipe.rewards import RewardSource

_WORKERS = 2


class Verifiers:
    """The metric of each source."""

    def __init__(self, context: Context, metrics: Mapping[str, RewardSource]) -> None:
        self._watch, self._metrics = context.ranks.watch, metrics
        self._workers: dict[str, RewardWorkers] = {}
        for name, source in metrics.items():
            self._workers[name] = RewardWorkers(source, _WORKERS, context.paths)
            self._workers[name].check()

    def facts(self, row: InputRow) -> Record:
        """What a record says of its metric."""
        metric = self._metrics[self._key(row)]
        lower = {"better": "lower"} if metric.lower_is_better else {}
        return {"kind": "prediction", "metric": metric.metric, **lower}

    def verify(
        self, row: InputRow, example: Example, truths: Sequence[str], answers: Sequence[str], finish: Sequence[str]
    ) -> list[Score]:
        """What the metric of a row's source says of each answer."""
        prompt = "\n".join(turn.text.strip() for turn in example.prompt)
        samples = [
            Sample(prompt, text, truths[0] if truths else None, str(example.origin), ended != "length", tuple(truths))
            for text, ended in zip(answers, finish, strict=True)
        ]
        return self._workers[self._key(row)].score(samples, self._watch.moved)

    def close(self) -> None:
        for workers in self._workers.values():
            workers.close()

    def _key(self, row: InputRow) -> str:
        return next((name for name in (row.own_source, row.source) if name in self._metrics), ALL)


def described(scores: Sequence[Score]) -> Record:
    """What a record says of verified answers; one that could not be scored has none."""
    return {
        "scores": [score.value for score in scores],
        "kinds": [score.kind for score in scores],
        "extracted": [score.extracted for score in scores],
    }
