"""Which records a page shows: some of each source and state, the bad ones first."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

from mmlaunch.results import record as read
from mmlaunch.results.answers import COUNTED
from mmlaunch.results.record import Record

STATES = ("failed", "unparsed", "wrong", "lost", "partly right", "tie", "scored", "won", "right")
"""In the order in which they are shown."""


@dataclass
class Samples:
    """At most so many records of each source and state: those with the least index, in whatever order they come."""

    most: int = 20
    _kept: dict[tuple[str, str], list[tuple[tuple[float, str], Record, float | None]]] = field(default_factory=dict)

    def add(self, record: Record, score: float | None) -> None:
        """One record with the score of its row."""
        kept = self._kept.setdefault((read.source(record), state_of(record, score)), [])
        place = _place(record)
        if self.most > 0 and (len(kept) < self.most or place < kept[-1][0]):
            bisect.insort(kept, (place, record, score), key=lambda one: one[0])
            del kept[self.most :]

    @property
    def sources(self) -> list[str]:
        return sorted({source for source, _ in self._kept})

    def __iter__(self) -> Iterator[tuple[str, Record, float | None]]:
        """The state, the record and its score, by state and source."""
        for state in STATES:
            for source in self.sources:
                for _, record, score in self._kept.get((source, state), []):
                    yield state, record, score


def state_of(record: Record, score: float | None) -> str:
    """What became of a record, in a word of `STATES`."""
    kind, known = read.kind(record), read.scores(record)
    if score is None or not known or (kind != read.PREDICTION and None in known):
        return "failed"
    if kind == read.PREDICTION and set(read.texts(record, "kinds")) & COUNTED.keys():
        return "unparsed"
    worst, best = (1, 0) if record.get("better") == "lower" else (0, 1)
    words = ("lost", "tie", "won") if kind == read.VERSUS else ("wrong", "tie", "right")
    if kind == read.PREDICTION and not 0 <= score <= 1:
        return "scored"
    middle = words[1] if kind != read.PREDICTION else "partly right"
    return words[0] if score == worst else words[2] if score == best else middle


def _place(record: Record) -> tuple[float, str]:
    index = record.get("index")
    return (float(index) if isinstance(index, (int, float)) else float("inf"), str(record.get("id")))
