"""The `prompts` format: questions without answers, for what learns from its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mmjobs.data.example import Example
from mmjobs.data.formats.trl import pictures, prompt_messages
from mmjobs.data.readers import saved
from mmjobs.data.readers.folder import Folder
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.rows import Rows, chosen, file_of, must_be, table_of
from mmjobs.data.readers.turns import prompt
from mmlaunch.recipe.data import Source

COLUMNS: tuple[tuple[str, ...], ...] = (("prompt",),)
"""Rows with all of one of these columns are in this format, unless a format of a lower `ORDER` matches."""
ORDER = 70

JSON = (".json", ".jsonl", ".ndjson")


def recognises(path: Path) -> bool:
    """A text file has one prompt a line."""
    return path.suffix == ".txt"


def rows(source: Source) -> Rows:
    """A file of text, one prompt a line; or rows with `prompt` as text or messages, and images where there are some."""
    path = file_of(source)
    text = not saved.is_table(path) and path.suffix not in JSON
    count = None if source.limit is None else source.skip + source.limit
    table = table_of(path, source.split, count, text)
    must_be(table, path, "prompts", ["prompt"])
    return Rows(table, chosen(source, len(table), path), partial(_example, folder=Folder.of(source, path)))


def _example(row: Row, folder: Folder) -> Example:
    conversation = prompt_messages(row)
    images = pictures(row, conversation, folder)
    return Example(images, prompt(row, conversation, len(images)), (), row.origin, row.label())
