"""The `ultrafeedback` format: two conversations that end with a chosen and a rejected answer, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from mmjobs.data.example import Example
from mmjobs.data.formats.trl import pictures, prompt_messages
from mmjobs.data.readers.answers import columns_pair, compared, pair
from mmjobs.data.readers.folder import Folder
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.rows import Rows, examples, file_of
from mmjobs.data.readers.turns import prompt
from mmjobs.data.writers.fit import Holds
from mmjobs.data.writers.words import Facts, messages
from mmlaunch.recipe.data import Source

COLUMNS: tuple[tuple[str, ...], ...] = (
    ("chosen", "rejected", "score_chosen", "score_rejected"),
    ("chosen", "rejected", "chosen_rating", "rejected_rating"),
)
"""Rows with all of one of these columns are in this format, unless a format of a lower `ORDER` matches."""
ORDER = 50

HOLDS = Holds(fewest=2, most=2, typed=True, turns=2, scores=2, scored=True)


def rows(source: Source) -> Rows:
    """`chosen` and `rejected` as messages, with `score_chosen` and `score_rejected`, or chosen_ and rejected_rating."""
    make = partial(_example, folder=Folder.of(source, file_of(source)))
    return examples(source, "ultrafeedback", ["chosen", "rejected", "score_chosen", "chosen_rating"], make)


def _example(row: Row, folder: Folder) -> Example:
    if isinstance(row.need("chosen"), str):
        conversation, answers = prompt_messages(row), columns_pair(row)
    else:
        shared, chosen, rejected = compared(row)
        conversation, answers = tuple(shared) or prompt_messages(row), pair(row, chosen, rejected)
    if answers[0].score is None:
        raise row.bad("no scores: score_chosen and score_rejected are needed; format: trl reads pairs without")
    images = pictures(row, conversation, folder)
    return Example(images, prompt(row, conversation, len(images)), answers, row.origin)


def row_of(example: Example, images: Sequence[str], facts: Facts) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt_id": facts.name, **({"images": list(images)} if images else {})}
    row["prompt"] = example.prompt[-1].text
    for column, answer in zip(("chosen", "rejected"), example.answers, strict=True):
        row |= {column: messages(example.prompt, answer.text), f"score_{column}": answer.score}
    return row
