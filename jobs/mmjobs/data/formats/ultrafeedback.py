"""The `ultrafeedback` format: two conversations that end with a chosen and a rejected answer, and their scores."""

from __future__ import annotations

from mmjobs.data.example import Example
from mmjobs.data.formats.trl import prompt_messages
from mmjobs.data.readers.answers import columns_pair, compared, pair
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.rows import Rows, examples
from mmjobs.data.readers.turns import prompt
from mmlaunch.recipe.data import Source

COLUMNS: tuple[tuple[str, ...], ...] = (
    ("chosen", "rejected", "score_chosen", "score_rejected"),
    ("chosen", "rejected", "chosen_rating", "rejected_rating"),
)
"""Rows with all of one of these columns are in this format, unless a format of a lower `ORDER` matches."""
ORDER = 50


def rows(source: Source) -> Rows:
    """`chosen` and `rejected` as messages, with `score_chosen` and `score_rejected`, or chosen_ and rejected_rating."""
    return examples(source, "ultrafeedback", ["chosen", "rejected", "score_chosen", "chosen_rating"], _example)


def _example(row: Row) -> Example:
    if isinstance(row.need("chosen"), str):
        conversation, answers = prompt_messages(row), columns_pair(row)
    else:
        shared, chosen, rejected = compared(row)
        conversation, answers = tuple(shared) or prompt_messages(row), pair(row, chosen, rejected)
    if answers[0].score is None:
        raise row.bad("no scores: score_chosen and score_rejected are needed; format: trl reads pairs without")
    return Example((), prompt(row, conversation, 0), answers, row.origin)
