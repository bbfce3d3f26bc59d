"""Answers: the last words of a conversation or a column of their own, with their scores, best first."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from mmjobs.data.example import Answer
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.turns import Message, messages, turn

SCORES = (("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating"), ("chosen_score", "rejected_score"))
"""The columns that data sets keep the scores of a pair in; the first that exist are used."""


def last(row: Row, found: Sequence[Message], column: str) -> tuple[Sequence[Message], Message]:
    """A conversation as what comes before its last answer, and that answer."""
    if found[-1].role != "assistant":
        raise row.bad(f"{column} does not end with an answer; its last message is the {found[-1].role}'s")
    return found[:-1], found[-1]


def spoken(row: Row, message: Message) -> str:
    """The text of an answer; it is never searched for images."""
    content = turn(row, message)
    if any(not isinstance(part, str) for part in content.content):
        raise row.bad(f"{message.where} is an answer with an image; answers are text")
    return worded(row, content.text, message.where)


def worded(row: Row, value: Any, what: str) -> str:
    """An answer that stands in a column as text, byte for byte."""
    text = row.clean(value, what)
    if not text.strip():
        raise row.bad(f"{what} is an empty answer; it needs some text")
    return text


def ranked(row: Row, texts: Sequence[str], scores: Sequence[float | None], names: Sequence[str]) -> tuple[Answer, ...]:
    """Several answers, best first; the same answer twice would be better than itself."""
    for place, text in enumerate(texts):
        if text in texts[:place]:
            raise row.bad(
                f"{names[texts.index(text)]} and {names[place]} are the same; a preference needs a difference"
            )
    for place, (better, worse) in enumerate(pairwise(scores)):
        if better is not None and worse is not None and better < worse:
            what = f"{names[place]} has the score {better:g} and {names[place + 1]} {worse:g}"
            raise row.bad(f"{what}; the best comes first")
    return tuple(Answer(text, score) for text, score in zip(texts, scores, strict=True))


def pair(row: Row, chosen: str, rejected: str) -> tuple[Answer, ...]:
    """The chosen and the rejected answer, with the scores that the row has for both."""
    return ranked(row, (chosen, rejected), _scores(row), ("chosen", "rejected"))


def columns_pair(row: Row) -> tuple[Answer, ...]:
    """A pair from two columns of text."""
    chosen, rejected = (worded(row, row.need(column), column) for column in ("chosen", "rejected"))
    return pair(row, chosen, rejected)


def _scores(row: Row) -> tuple[float | None, float | None]:
    for names in SCORES:
        chosen, rejected = (row.get(name) for name in names)
        if chosen is not None or rejected is not None:
            return row.number(chosen, names[0]), row.number(rejected, names[1])
    return None, None


def truths(row: Row, *columns: str) -> tuple[str, ...]:
    """What the first of these columns that has anything calls right: one answer, or a list of them.

    A number is its text. An object with `answer` is that, as in VQA; any other one is its JSON, for a reward function
    that knows it.
    """
    for column in columns:
        if (value := row.get(column)) is not None and value not in ("", []):
            if not isinstance(value, list):
                return (_truth(row, value, column),)
            return tuple(_truth(row, item, f"{column}[{n}]") for n, item in enumerate(value) if item is not None)
    return ()


def _truth(row: Row, value: Any, what: str) -> str:
    if isinstance(value, dict) and isinstance(value.get("answer"), (str, int, float)):
        value = value["answer"]
    if isinstance(value, (bool, dict, list)):
        try:
            value = json.dumps(value, ensure_ascii=False)
        except TypeError:
            raise row.bad(f"{what} holds what is neither text nor a number; it has to be JSON") from None
    return str(value) if isinstance(value, (int, float)) else row.clean(value, what)


def listed(text: str) -> list[str] | None:
    """The texts of a list that is written as text, in Python or JSON; None for any other text."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    texts = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
    return value if texts else None


def merged(texts: Sequence[str], scores: Sequence[float | None]) -> tuple[Answer, ...]:
    """What a model said, each text once with its best score, best first; what has no score comes last."""
    best: dict[str, float | None] = {}
    for text, score in zip(texts, scores, strict=True):
        known = best.get(text)
        best[text] = score if known is None else known if score is None else max(known, score)
    said = [Answer(text, score) for text, score in best.items()]
    return tuple(sorted(said, key=lambda one: -math.inf if one.score is None else one.score, reverse=True))


def compared(row: Row) -> tuple[Sequence[Message], str, str]:
    """The conversation that `chosen` and `rejected` share, which may be none, and the answers they end with."""
    ends = []
    for column in ("chosen", "rejected"):
        before, answer = last(row, messages(row, row.need(column), column), column)
        ends.append((before, spoken(row, answer)))
    (shared, chosen), (other, rejected) = ends
    for place in range(max(len(shared), len(other))):
        if place >= min(len(shared), len(other)) or not shared[place].same(other[place]):
            what = f"chosen and rejected part at message {place}, before their last answers"
            raise row.bad(f"{what}; both have to answer the same conversation")
    return shared, chosen, rejected
