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


@dataclass(frozen=True)
class Score:
    """What came of one answer. Without a value it has no reward: it leaves its group, and is never 0."""

    value: float | None
    kind: Kind
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.kind in ("timeout", "error")


@dataclass(frozen=True)
class Verdict:
    """What a function may return in the place of a number, to say what kind of answer it was."""

    score: float | None
    kind: Judged = "scored"


def verdict(result: Any) -> Verdict:
    """What a function returned, checked; raises `TypeError` or `ValueError` where it is no score."""
    if result is None:
        return Verdict(None, "unparsed")
    if isinstance(result, Verdict):
        if result.kind not in get_args(Judged):
            raise ValueError(f"returned a verdict of the kind {result.kind!r}; write {', '.join(get_args(Judged))}")
        return Verdict(None if result.score is None else _finite(result.score), result.kind)
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
