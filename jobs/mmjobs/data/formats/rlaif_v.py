"""The `rlaif_v` format: a table of image, question, chosen and rejected answer, as in the data set of that name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from mmjobs.data.example import Example
from mmjobs.data.readers.answers import columns_pair
from mmjobs.data.readers.folder import Folder
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.rows import Rows, examples, file_of
from mmjobs.data.readers.turns import Message, prompt
from mmjobs.data.writers.fit import Holds
from mmjobs.data.writers.words import Facts, named, question
from mmlaunch.recipe.data import Source

COLUMNS: tuple[tuple[str, ...], ...] = (("question", "chosen", "rejected"),)
"""Rows with all of one of these columns are in this format, unless a format of a lower `ORDER` matches."""
ORDER = 40

HOLDS = Holds(fewest=2, most=2)


def rows(source: Source) -> Rows:
    """Parquet files or a folder that `save_to_disk` wrote; images hold their bytes, or the path of a file."""
    make = partial(_example, folder=Folder.of(source, file_of(source)))
    return examples(source, "rlaif_v", ["question", "chosen", "rejected"], make)


def _example(row: Row, folder: Folder) -> Example:
    images = folder.pictures(row, "image", "images")
    question = Message("user", row.clean(row.need("question"), "question"), "question")
    return Example(images, prompt(row, [question], len(images)), columns_pair(row), row.origin)


def row_of(example: Example, images: Sequence[str], facts: Facts) -> dict[str, Any]:
    chosen, rejected = example.answers
    row = {"idx": facts.name, **named(images), "question": question(example)}
    return row | {"chosen": chosen.text, "rejected": rejected.text}
