"""The `prompts` format: questions without answers, for what learns from its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmjobs.data.example import Example
from mmjobs.data.formats.trl import pictures, prompt_messages
from mmjobs.data.readers.answers import truths
from mmjobs.data.readers.folder import Folder
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.rows import Rows, called, chosen, file_of, is_table, must_be, table_of
from mmjobs.data.readers.turns import prompt
from mmjobs.data.writers.fit import MANY, Holds
from mmjobs.data.writers.words import Facts, messages
from mmlaunch.recipe.data import Source

COLUMNS: tuple[tuple[str, ...], ...] = (("prompt",),)
"""Rows with all of one of these columns are in this format, unless a format of a lower `ORDER` matches."""
ORDER = 70

HOLDS = Holds(most=0, typed=True, turns=0, label=True, truths=MANY)

TRUTHS = ("answer", "answers", "ground_truth")
"""The columns that may say what is right."""

JSON = (".json", ".jsonl", ".ndjson")


def recognises(path: Path) -> bool:
    """A text file has one prompt a line."""
    return path.suffix == ".txt"


def rows(source: Source) -> Rows:
    """A file of text, one prompt a line; or rows with `prompt` as text or messages, and images where there are some."""
    path = file_of(source)
    text = not is_table(path) and path.suffix not in JSON
    count = None if source.limit is None else source.skip + source.limit
    table, where = table_of(source, count, text), called(source)
    must_be(table, where, "prompts", ["prompt"])
    return Rows(table, chosen(source, len(table), where), partial(_example, folder=Folder.of(source, path)))


def _example(row: Row, folder: Folder) -> Example:
    conversation = prompt_messages(row)
    images = pictures(row, conversation, folder)
    return Example(images, prompt(row, conversation, len(images)), (), row.origin, row.label(), truths(row, *TRUTHS))


def row_of(example: Example, images: Sequence[str], facts: Facts) -> dict[str, Any]:
    """One row; a question without images is text, everything else messages."""
    plain = len(example.prompt) == 1 and not images
    row: dict[str, Any] = {"id": facts.name, **({"images": list(images)} if images else {})}
    row["prompt"] = example.prompt[0].text if plain else messages(example.prompt)
    row |= {"answers": list(example.truths)} if example.truths else {}
    return row | ({"label": example.label} if example.label is not None else {})
