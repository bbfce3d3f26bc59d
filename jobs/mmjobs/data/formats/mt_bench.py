"""The `mt_bench` format: questions of several turns, where each turn follows whatever was answered before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from mmjobs.data.example import Example
from mmjobs.data.readers.answers import truths
from mmjobs.data.readers.folder import Folder
from mmjobs.data.readers.row import Row, kind
from mmjobs.data.readers.rows import Rows, examples, file_of
from mmjobs.data.readers.turns import Message, prompt
from mmjobs.data.writers.fit import Holds
from mmjobs.data.writers.words import Facts, question
from mmlaunch.recipe.data import Source

COLUMNS: tuple[tuple[str, ...], ...] = (("question_id", "turns"),)
"""Rows with all of one of these columns are in this format, unless a format of a lower `ORDER` matches."""
ORDER = 64

HOLDS = Holds(most=0, truths=1, followups=True)


def rows(source: Source) -> Rows:
    """JSON lines with `question_id`, `category` and `turns`: the first is the prompt, the others follow its answer.

    `reference` is what the data call right for the first turn and each that follows; only the first is kept.
    """
    make = partial(_example, folder=Folder.of(source, file_of(source)))
    return examples(source, "mt_bench", ["turns"], make)


def _example(row: Row, folder: Folder) -> Example:
    turns = row.need("turns")
    if not isinstance(turns, list) or not turns:
        raise row.bad(f"turns is {'empty' if turns == [] else kind(turns)}; it has to be a list of what the user says")
    texts = [row.clean(text, f"turns[{place}]") for place, text in enumerate(turns)]
    if blank := [place for place, text in enumerate(texts) if not text.strip()]:
        raise row.bad(f"turns[{blank[0]}] is empty; it needs some text")
    images = folder.pictures(row, "image", "images")
    asked = prompt(row, [Message("user", texts[0], "turns[0]")], len(images))
    right = truths(row, "reference")[:1]
    return Example(images, asked, (), row.origin, truths=right, followups=tuple(texts[1:]))


def row_of(example: Example, images: Sequence[str], facts: Facts) -> dict[str, Any]:
    row: dict[str, Any] = {"question_id": facts.name, "category": facts.category or "all"}
    row |= {"images": list(images)} if images else {}
    row["turns"] = [question(example), *example.followups]
    return row | ({"reference": list(example.truths)} if example.truths else {})
