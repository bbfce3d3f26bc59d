"""The summary of an evaluation: all records in one pass, by source and over all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mmlaunch.results import record as read
from mmlaunch.results.answers import Answers
from mmlaunch.results.comparisons import Pairs, Versus
from mmlaunch.results.interval import Mean, mean_of
from mmlaunch.results.record import Record

HIGHER, PAIRS, LOWER = SCALES = ("higher", "pairs", "lower")
"""Scores that have no common mean: of answers, of pairs, and of answers where lower is better."""


@dataclass(frozen=True)
class Overall:
    """The means over several sources."""

    rows: Mean
    """Each row with the same weight."""
    macro: float | None
    """Each source with the same weight."""
    sources: int

    def as_json(self) -> dict[str, Any]:
        low, high = self.rows.interval or (None, None)
        return {
            "overall": {"n": self.rows.count, "score": self.rows.score, "low": low, "high": high},
            "macro": {"sources": self.sources, "score": self.macro},
        }


@dataclass
class Evaluation:
    """What the records come to. It holds sums by source and by image, and no record."""

    answers: dict[tuple[str, str], Answers] = field(default_factory=dict)
    """By source and metric."""
    pairs: dict[str, Pairs] = field(default_factory=dict)
    versus: dict[str, Versus] = field(default_factory=dict)
    rows: int = 0
    _all: dict[str, Mean] = field(default_factory=dict)
    """Over the rows of all sources, by their scale."""

    def add(self, record: Record) -> float | None:
        """One record; returns the score of its row."""
        self.rows += 1
        source, kind = read.source(record), read.kind(record)
        if kind == read.VERSUS:
            return self.versus.setdefault(source, Versus(source)).add(record)
        if kind == read.PAIR:
            score = self.pairs.setdefault(source, Pairs(source)).add(record)
        else:
            metric, lower = str(record.get("metric") or "score"), record.get("better") == "lower"
            score = self.answers.setdefault((source, metric), Answers(source, metric, lower)).add(record)
        self._all.setdefault(_scale(record), Mean()).add(score, read.texts(record, "images"))
        return score

    @property
    def sources(self) -> list[tuple[str, Answers]]:
        """The sources by name; one that is scored by two metrics has both in its names."""
        names = [source for source, _ in self.answers]
        return [
            (source if names.count(source) == 1 else f"{source} ({metric})", self.answers[source, metric])
            for source, metric in sorted(self.answers)
        ]

    @property
    def overall(self) -> Overall:
        """The means over all sources that can be compared: where several scales are mixed, over those of one."""
        scale = next((scale for scale in SCALES if scale in self._all), SCALES[0])
        rows = self._all.get(scale, Mean())
        answers = [one for one in self.answers.values() if (LOWER if one.lower else HIGHER) == scale]
        sources = list(self.pairs.values()) if scale == PAIRS else answers
        if not rows.shares and len({one.metric for one in answers}) > 1:  # rewards of two models, for example
            return Overall(Mean(), None, 0)
        scores = [one.rows.score for one in sources if one.rows.score is not None]
        return Overall(rows, mean_of(scores) if scores else None, len(scores))

    def as_json(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "n": self.rows,
            "by_source": {name: one.as_json() for name, one in self.sources},
            **self.overall.as_json(),
        }
        if self.pairs:
            facts["pairs"] = {name: one.as_json() for name, one in sorted(self.pairs.items())}
        if self.versus:
            facts["versus"] = {name: one.as_json() for name, one in sorted(self.versus.items())}
        return facts


def summary(records: Iterable[Record]) -> Evaluation:
    """The summary of records, which is the same in whatever order they come.

    A record is the mapping that evaluations write: `source`, `images`, `predictions`, `finish`, `error`, `scores`,
    `kinds`, `extracted`, `metric`; `better: lower` where lower scores are better. `kind: pair` has the scores of ranked
    answers, the best one first, and perhaps a `subset`; `kind: versus` those of two models.
    """
    evaluation = Evaluation()
    for record in records:
        evaluation.add(record)
    return evaluation


def _scale(record: Record) -> str:
    """Which of `SCALES` a record is of."""
    if read.kind(record) == read.PAIR:
        return PAIRS
    return LOWER if record.get("better") == "lower" else HIGHER
