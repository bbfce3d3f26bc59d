"""Verification: reward functions say which answers are right, in processes of their own with a deadline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmjobs.data.example import Example
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

    def name_of(self, source: str) -> str:
        """The name of the function that verifies a source's answers."""
        return self._metrics[self._key(source)].metric

    def facts(self, source: str) -> Record:
        """What a record says of its metric."""
        lower = {"better": "lower"} if self._metrics[self._key(source)].lower_is_better else {}
        return {"kind": "prediction", "metric": self.name_of(source), **lower}

    def verify(
        self, source: str, example: Example, truths: Sequence[str], answers: Sequence[str], finish: Sequence[str]
    ) -> list[Score]:
        """What the metric of a source says of each answer."""
        prompt = "\n".join(turn.text.strip() for turn in example.prompt)
        samples = [
            Sample(prompt, text, truths[0] if truths else None, str(example.origin), ended != "length", tuple(truths))
            for text, ended in zip(answers, finish, strict=True)
        ]
        return self._workers[self._key(source)].score(samples, self._watch.moved)

    def close(self) -> None:
        for workers in self._workers.values():
            workers.close()

    def _key(self, source: str) -> str:
        return source if source in self._metrics else ALL


def described(scores: Sequence[Score]) -> Record:
    """What a record says of verified answers; one that could not be scored has none."""
    return {
        "scores": [score.value for score in scores],
        "kinds": [score.kind for score in scores],
        "extracted": [score.extracted for score in scores],
    }
