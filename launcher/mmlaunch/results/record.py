"""One record of an evaluation: a line of JSON, read with care, since anyone may have written it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]
PREDICTION, PAIR, VERSUS = "prediction", "pair", "versus"
"""The kinds of records; one without a kind is a prediction."""


def kind(record: Record) -> str:
    return str(record.get("kind") or PREDICTION)


def source(record: Record) -> str:
    return str(record.get("source") or "all")


def prompt(record: Record) -> str:
    """What was asked: the text, or a conversation with a line for each message that begins with its role."""
    words = record.get("prompt")
    if not isinstance(words, (list, tuple)):
        return str(words)
    return "\n".join(
        f"{one.get('role', '?')}: {one.get('content', '')}" if isinstance(one, Mapping) else str(one) for one in words
    )


def later_turns(record: Record) -> list[list[str]]:
    """The answers to each turn of a conversation behind the first."""
    turns = record.get("turn_predictions")
    return [_listed(answers) for answers in turns[1:]] if isinstance(turns, (list, tuple)) else []


def texts(record: Record, name: str) -> list[str]:
    """A field that is a list of texts; one text counts as a list of one."""
    return _listed(record.get(name))


def _listed(value: Any) -> list[str]:
    value = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
    return ["" if one is None else str(one) for one in value]


def scores(record: Record) -> list[float | None]:
    """The scores; None where there is none that is a finite number. A record that failed has none."""
    values = record.get("scores")
    if record.get("error") or not isinstance(values, (list, tuple)):
        return []
    return [_number(value) for value in values]


def extracted(record: Record) -> list[str | None]:
    """What was read out of each answer."""
    values = record.get("extracted")
    values = values if isinstance(values, (list, tuple)) else [values]
    return [None if value is None else str(value) for value in values]


def failure(record: Record) -> str | None:
    """Why a record has no answer; None if it has one."""
    error = record.get("error")
    if isinstance(error, Mapping):
        reason, detail = str(error.get("reason") or "error"), str(error.get("detail") or "")
        return f"{reason}: {detail}" if detail else reason
    return str(error) if error else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return float(value) if isinstance(value, bool) else None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
