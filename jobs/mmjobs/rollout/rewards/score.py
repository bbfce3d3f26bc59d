"""What a reward function gets and what it returns. Imported by workers: nothing heavy here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

Judged = Literal["right", "wrong", "scored", "unparsed"]
"""What a function may say of an answer; unparsed: the answer is not in a form that it can read."""
Kind = Literal[Judged, "timeout", "error"]
"""What is counted: timeout and error are answers that the function failed to score."""

LONGEST = 500
"""The most characters of what was extracted that are passed on."""


@dataclass(frozen=True)
class Sample:
    """One answer to score."""

    prompt: str
    answer: str
    truth: str | None
    origin: str
    """Where its prompt comes from: file and row."""
    finished: bool
    """Whether the answer ended by itself, and not at the limit of its length."""
    truths: tuple[str, ...] = ()
    """All answers that are acceptable; the truth alone where nothing else is said."""

    def __post_init__(self) -> None:
        if not self.truths and self.truth is not None:
            object.__setattr__(self, "truths", (self.truth,))
        elif self.truth is None and self.truths:
            object.__setattr__(self, "truth", self.truths[0])


@dataclass(frozen=True)
class Score:
    """What came of one answer. Without a value it has no reward: it leaves its group, and is never 0."""

    value: float | None
    kind: Kind
    detail: str = ""
    extracted: str | None = None
    """What was read out of the answer, where something was."""

    @property
    def failed(self) -> bool:
        return self.kind in ("timeout", "error")


@dataclass(frozen=True)
class Verdict:
    """What a function may return in the place of a number, to say what kind of answer it was."""

    score: float | None
    kind: Judged = "scored"
    extracted: str | None = None
    """What the function has read out of the answer, for people to see."""


def verdict(result: Any) -> Verdict:
    """What a function returned, checked; raises `TypeError` or `ValueError` where it is no score."""
    if result is None:
        return Verdict(None, "unparsed")
    if isinstance(result, Verdict):
        if result.kind not in get_args(Judged):
            raise ValueError(f"returned a verdict of the kind {result.kind!r}; write {', '.join(get_args(Judged))}")
        if result.extracted is not None and not isinstance(result.extracted, str):
            raise TypeError(f"returned a verdict whose extracted is {_shown(result.extracted)}; write a text or None")
        score, extracted = result.score, result.extracted
        return Verdict(None if score is None else _finite(score), result.kind, extracted and extracted[:LONGEST])
    value = _finite(result)
    return Verdict(value, ("right" if value else "wrong") if isinstance(result, bool) else "scored")


def _finite(result: Any) -> float:
    if getattr(result, "shape", None) == () and hasattr(result, "item"):  # a number of numpy or torch
        result = result.item()
    if not isinstance(result, Real):
        raise TypeError(f"returned {_shown(result)}; return a number, a bool or None")
    value = float(result)
    if not math.isfinite(value):
        raise ValueError(f"returned {value}, which is not finite")
    return value


def _shown(result: Any) -> str:
    kind = type(result).__name__
    return f"the {kind} {result[:60]!r}" if isinstance(result, str) else f"a {kind}"
