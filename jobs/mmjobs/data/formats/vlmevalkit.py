"""The `vlmevalkit` format: benchmarks as VLMEvalKit keeps them, and the predictions that it writes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from string import ascii_uppercase
from typing import Any

from mmjobs.data.example import Answer, BadRow, Example, Picture
from mmjobs.data.readers.answers import listed, truths
from mmjobs.data.readers.folder import Folder
from mmjobs.data.readers.references import Resolved
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.rows import Rows, called, chosen, file_of, must_be, table_of
from mmjobs.data.readers.turns import Message, prompt
from mmjobs.data.writers.fit import MANY, Holds
from mmjobs.data.writers.words import Facts, question
from mmlaunch.recipe.data import Source

COLUMNS: tuple[tuple[str, ...], ...] = (("index", "question"),)
"""Rows with all of one of these columns are in this format, unless a format of a lower `ORDER` matches."""
ORDER = 75

HOLDS = Holds(
    most=1,
    truths=MANY,
    embeds=True,
    marks=r"<image( \d+)?>",
    columns=("index", "image", "image_path", "question", "answer", "category", "prediction"),
    carried=("hint", *ascii_uppercase, "l2-category", "split"),
)

NUMBERED = re.compile(r"<image (\d+)>")


def rows(source: Source) -> Rows:
    """`index`, `question`, and `image` (base64) or `image_path`; options A, B, ...; `hint`, `answer`, `prediction`.

    A list that is written as text, `['...', '...']`, holds several images, or several right answers.
    """
    table, where = table_of(source), called(source)  # all of it: an image may stand in any row
    must_be(table, where, "vlmevalkit", ["question"])
    make = partial(_example, folder=Folder.of(source, file_of(source)))
    return Rows(Resolved(table), chosen(source, len(table), where), make)


def _example(row: Row, folder: Folder) -> Example:
    content, images = _placed(_question(row), _images(row, folder))
    asked = Message("user", content, "question")
    said = row.get("prediction")
    answers = () if said is None else (Answer(_text(row, said, "prediction")),)
    return Example(images, prompt(row, [asked], len(images)), answers, row.origin, truths=_truths(row))


def _images(row: Row, folder: Folder) -> tuple[Picture, ...]:
    """One in a cell, or a list that is written as text."""
    for column in ("image", "image_path"):
        if (held := row.get(column)) is not None:
            several = listed(held) if isinstance(held, str) else None
            return folder.collected(row, several, column) if several else folder.pictures(row, column)
    return ()


def _question(row: Row) -> str:
    """The question alone, or with its hint and its options as VLMEvalKit lays them out."""
    words = row.text("question")
    options = [
        (letter, _text(row, row.get(letter), letter)) for letter in ascii_uppercase if row.get(letter) is not None
    ]
    hint = row.get("hint")
    if hint is None and not options:
        return words
    laid = [f"Hint: {_text(row, hint, 'hint')}"] if hint is not None else []
    laid.append(f"Question: {words}")
    if options:
        laid += ["Options:", *(f"{letter}. {text}" for letter, text in options)]
        laid.append("Please select the correct answer from the options above.")
    return "\n".join(laid)


def _placed(words: str, images: tuple[Picture, ...]) -> tuple[str | list[dict[str, str]], tuple[Picture, ...]]:
    """`<image 2>` among the words is the place of the second image, as in MMMU; images without a place come first."""
    pieces = NUMBERED.split(words)
    numbers = [int(piece) - 1 for piece in pieces[1::2]]
    if not numbers or not all(0 <= number < len(images) for number in numbers):
        return words, images
    order = [number for number in range(len(images)) if number not in numbers] + numbers
    items = [{"type": "image"}] * (len(order) - len(numbers))
    for place, piece in enumerate(pieces):
        items.append({"type": "image"} if place % 2 else {"type": "text", "text": piece})
    return items, tuple(images[number] for number in order)


def _truths(row: Row) -> tuple[str, ...]:
    value = row.get("answer")
    several = listed(value) if isinstance(value, str) else None
    return tuple(several) if several else truths(row, "answer")


def _text(row: Row, value: Any, what: str) -> str:
    """A cell as text: sheets and JSON hold numbers where a table of text has letters."""
    return str(value) if isinstance(value, (int, float)) else row.clean(value, what)


def row_of(example: Example, images: Sequence[str], facts: Facts) -> dict[str, Any]:
    """One row; `images` are in base64, and get the names that VLMEvalKit gives them on a disk."""
    names = [f"{facts.name}.jpg"] if len(images) == 1 else [f"{facts.name}_{n}.jpg" for n in range(1, len(images) + 1)]
    words = question(example)
    asked = _as_read(example, facts, words)
    own = {"question": words} if asked is None else asked
    return {
        **{column: facts.values.get(column) for column in ("l2-category", "split")},
        **own,
        "index": facts.name,
        "image": _cell(images),
        "image_path": _cell(names) if images else None,
        "answer": _cell(example.truths),
        "category": facts.category,
        "prediction": example.answers[0].text if example.answers else None,
    }


def _as_read(example: Example, facts: Facts, words: str) -> dict[str, Any] | None:
    """The question, its hint and its options in columns of their own, where the row that was read has just these.

    VLMEvalKit scores a prediction by the options beside it.
    """
    row = Row(example.origin, facts.values)
    try:
        same = _question(row) == words
    except BadRow:
        return None
    return {name: row.get(name) for name in ("question", "hint", *ascii_uppercase)} if same else None


def _cell(texts: Sequence[str]) -> str | None:
    if len(texts) == 1 and listed(texts[0]) is None:
        return texts[0]
    return json.dumps(list(texts), ensure_ascii=False) if texts else None
