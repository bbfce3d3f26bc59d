"""Scored answers of one source: their mean with its interval, how many failed, and what several answers are worth."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from mmlaunch.results import record as read
from mmlaunch.results.interval import Interval, Mean, mean_of
from mmlaunch.results.record import Record

COUNTED = {"unparsed": "unparsed", "timeout": "timeouts", "error": "errors"}
"""The kinds of verdicts that count as wrong, and what their number is called."""


@dataclass
class Answers:
    """What is counted of one source. A row that failed, and an answer that was not read, count as wrong."""

    source: str
    metric: str
    lower: bool = False
    """Whether lower scores are better: then wrong is 1, and else 0."""
    rows: Mean = field(default_factory=Mean)
    counts: Counter[str] = field(default_factory=Counter)
    """answers, failed, unparsed, timeouts, errors, truncated; all but failed are of answers, and failed is of rows."""
    _samples: Counter[tuple[int, int]] = field(default_factory=Counter)
    """How many rows have so many answers, and so many right ones."""
    majority: Mean = field(default_factory=Mean)
    ties: int = 0

    def add(self, record: Record) -> float:
        """One row; returns its score."""
        values = self._values(record)
        score = mean_of(values) if values else float(self.lower)
        self.rows.add(score, read.texts(record, "images"))
        self.counts["failed"] += not values
        self.counts["answers"] += len(values)
        self.counts["truncated"] += read.texts(record, "finish").count("length") if values else 0
        self._samples[len(values), sum(value == (0 if self.lower else 1) for value in values)] += 1
        self._vote(record, values)
        return score

    def _values(self, record: Record) -> list[float]:
        """The value of each answer."""
        kinds, wrong, values = read.texts(record, "kinds"), float(self.lower), []
        for place, score in enumerate(read.scores(record)):
            kind = kinds[place] if place < len(kinds) else "scored"
            kind = "error" if score is None and kind not in COUNTED else kind
            if kind in COUNTED:
                self.counts[COUNTED[kind]] += 1
            values.append(wrong if kind in COUNTED or score is None else score)
        return values

    def _vote(self, record: Record, values: list[float]) -> None:
        """The most frequent answer; of several, the one that came first. One that was not read has no vote."""
        kinds, said, written = read.texts(record, "kinds"), read.extracted(record), read.texts(record, "predictions")
        votes: dict[str, list[float]] = {}
        for place, value in enumerate(values):
            if place < len(kinds) and kinds[place] in COUNTED:
                continue
            own = said[place] if place < len(said) else None
            text = own if own is not None else written[place] if place < len(written) else ""
            votes.setdefault(" ".join(text.casefold().split()), []).append(value)
        most = max((len(of_one) for of_one in votes.values()), default=0)
        first = [of_one[0] for of_one in votes.values() if len(of_one) == most]
        self.ties += len(first) > 1
        self.majority.add(first[0] if first else float(self.lower))

    @property
    def score(self) -> float | None:
        return self.rows.score

    @property
    def interval(self) -> Interval | None:
        return self.rows.interval

    @property
    def several(self) -> int:
        """The least number of answers of a row that has any; pass@k is known up to it."""
        return min((count for count, _ in self._samples if count), default=0)

    def pass_at(self) -> dict[int, float]:
        """For k = 1, 2, 4, .. and all: the chance that one of k answers is right, without bias; {} for one answer."""
        most = self.several
        sizes = sorted({1 << power for power in range(most.bit_length())} | {most}) if most > 1 else []
        return {k: self._pass(k) for k in sizes}

    def _pass(self, k: int) -> float:
        """The mean of 1 - C(n - c, k) / C(n, k) over rows with n answers, of which c are right."""
        total = Fraction(0)
        for (count, right), rows in self._samples.items():
            if count:
                total += rows * (1 - Fraction(math.comb(count - right, k), math.comb(count, k)))
        return float(total / self.rows.count)

    def as_json(self) -> dict[str, Any]:
        low, high = self.interval or (None, None)
        counts = {name: self.counts[name] for name in ("answers", "failed", *COUNTED.values(), "truncated")}
        facts: dict[str, Any] = {
            "metric": self.metric,
            "n": self.rows.count,
            "score": self.score,
            "low": low,
            "high": high,
            **counts,
        }
        if self.lower:
            facts["better"] = "lower"
        if passed := self.pass_at():
            facts["pass_at"] = {str(k): value for k, value in passed.items()}
            facts["majority"] = {"score": self.majority.score, "ties": self.ties}
        return facts
