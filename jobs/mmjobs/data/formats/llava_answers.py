"""The `llava_answers` format: the question files of LLaVA's evaluation, and the answer files that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from mmjobs.data.example import Answer, Example
from mmjobs.data.readers.answers import truths
from mmjobs.data.readers.folder import Folder
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.rows import Rows, examples, file_of
from mmjobs.data.readers.turns import Message, prompt
from mmjobs.data.writers.fit import MANY, Holds
from mmjobs.data.writers.words import Facts, question
from mmlaunch.recipe.data import Source

COLUMNS: tuple[tuple[str, ...], ...] = (("question_id", "text"),)
"""Rows with all of one of these columns are in this format, unless a format of a lower `ORDER` matches."""
ORDER = 65

HOLDS = Holds(most=1, truths=MANY)
TRUTHS = ("answer", "answers", "ground_truth", "label")


def rows(source: Source) -> Rows:
    """JSON lines with `question_id` and `text`: the question, or the answer where `prompt` is the question."""
    make = partial(_example, folder=Folder.of(source, file_of(source)))
    return examples(source, "llava_answers", ["text"], make)


def _example(row: Row, folder: Folder) -> Example:
    answered = row.get("prompt") is not None
    images = folder.pictures(row, "image", "images")
    asked = Message("user", row.text("prompt" if answered else "text"), "prompt" if answered else "text")
    answers = (Answer(row.clean(row.need("text"), "text")),) if answered else ()
    return Example(images, prompt(row, [asked], len(images)), answers, row.origin, truths=truths(row, *TRUTHS))


def row_of(example: Example, images: Sequence[str], facts: Facts) -> dict[str, Any]:
    row: dict[str, Any] = {"question_id": facts.name}
    if images:
        row["image"] = images[0] if len(images) == 1 and "," not in images[0] else list(images)
    words = question(example)
    row |= {"prompt": words, "text": example.answers[0].text} if example.answers else {"text": words}
    row |= {"answers": list(example.truths)} if example.truths else {}
    return row | ({"category": facts.category} if facts.category else {})
