"""Comparisons: how often a reward model prefers the better answer, and how often one model's answer beats another's."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from mmlaunch.results import categories
from mmlaunch.results import record as read
from mmlaunch.results.interval import UNIT, Mean
from mmlaunch.results.record import Record


@dataclass
class Category:
    """The subsets of one category, each row weighted as its benchmark does."""

    name: str
    subsets: dict[str, Mean]

    @property
    def count(self) -> int:
        return sum(subset.count for subset in self.subsets.values())

    @property
    def score(self) -> float:
        weights = {name: categories.weight(name) for name in self.subsets}
        total = sum((weights[name] * Fraction(one.total, UNIT) for name, one in self.subsets.items()), Fraction(0))
        return float(total / sum(weights[name] * one.count for name, one in self.subsets.items()))


@dataclass
class Pairs:
    """Ranked answers of one source: right where the first has the greatest score; a tie counts half."""

    source: str
    rows: Mean = field(default_factory=Mean)
    ties: int = 0
    failed: int = 0
    """Rows without a score for each answer; they count as wrong."""
    _subsets: dict[str, Mean] = field(default_factory=dict)

    def add(self, record: Record) -> float:
        """One row; returns its score."""
        scores = read.scores(record)
        known = [score for score in scores if score is not None]
        value = 0.0
        if len(known) < 2 or len(known) < len(scores):
            self.failed += 1
        else:
            best = max(known[1:])
            value = 0.5 if known[0] == best else float(known[0] > best)
            self.ties += value == 0.5
        images = read.texts(record, "images")
        self.rows.add(value, images)
        if record.get("subset"):
            self._subsets.setdefault(str(record["subset"]), Mean()).add(value, images)
        return value

    @property
    def subsets(self) -> dict[str, Mean]:
        return dict(sorted(self._subsets.items()))

    @property
    def categories(self) -> list[Category]:
        """A subset that no benchmark has is a category of its own."""
        named: dict[str, dict[str, Mean]] = {}
        for name, subset in self.subsets.items():
            named.setdefault(categories.of_subset(name) or name, {})[name] = subset
        return [Category(name, subsets) for name, subsets in sorted(named.items())]

    @property
    def macro(self) -> float | None:
        """The mean of the categories, each with the same weight; prior sets are extra."""
        scores = [category.score for category in self.categories if category.name not in categories.EXTRA]
        return sum(scores) / len(scores) if scores else None

    def as_json(self) -> dict[str, Any]:
        facts = _facts(self.rows, ties=self.ties, failed=self.failed)
        if self._subsets:
            facts["macro"] = self.macro
            facts["categories"] = {one.name: {"n": one.count, "score": one.score} for one in self.categories}
            facts["subsets"] = {name: _facts(one) for name, one in self.subsets.items()}
        return facts


@dataclass
class Versus:
    """Two answers for each row: how often the first one wins; a tie counts half."""

    source: str
    rows: Mean = field(default_factory=Mean)
    wins: int = 0
    ties: int = 0
    losses: int = 0
    failed: int = 0
    """Rows without two scores: nobody has won, and they are left out of the rate."""

    def add(self, record: Record) -> float | None:
        """One row; returns what it counts."""
        scores = read.scores(record)
        if len(scores) != 2 or scores[0] is None or scores[1] is None:
            self.failed += 1
            return None
        value = 0.5 if scores[0] == scores[1] else float(scores[0] > scores[1])
        self.wins, self.losses = self.wins + (value == 1), self.losses + (value == 0)
        self.ties += value == 0.5
        self.rows.add(value, read.texts(record, "images"))
        return value

    def as_json(self) -> dict[str, Any]:
        return _facts(self.rows, wins=self.wins, ties=self.ties, losses=self.losses, failed=self.failed)


def _facts(rows: Mean, **counts: int) -> dict[str, Any]:
    low, high = rows.interval or (None, None)
    return {"n": rows.count, "score": rows.score, "low": low, "high": high, **counts}
