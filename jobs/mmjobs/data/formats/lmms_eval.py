"""The `lmms_eval` format: the samples that lmms-eval logs, with what the model was given and what it said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from mmjobs.data.example import Example
from mmjobs.data.readers.answers import listed, merged, truths
from mmjobs.data.readers.folder import Folder
from mmjobs.data.readers.row import Row, kind
from mmjobs.data.readers.rows import Rows, examples, file_of
from mmjobs.data.readers.turns import Message, prompt
from mmjobs.data.writers.fit import MANY, Holds
from mmjobs.data.writers.words import Facts, question
from mmlaunch.recipe.data import Source

COLUMNS: tuple[tuple[str, ...], ...] = (("doc_id", "filtered_resps"), ("doc_id", "resps"))
"""Rows with all of one of these columns are in this format, unless a format of a lower `ORDER` matches."""
ORDER = 66

HOLDS = Holds(truths=MANY)


def rows(source: Source) -> Rows:
    """JSON lines with `doc_id`, `input` or `arguments`, `target`, `resps` and `filtered_resps`.

    What the model said is `resps`; what filters left of it is taken only where `resps` is missing. The logs name no
    images: `image` or `images` are columns of one's own.
    """
    make = partial(_example, folder=Folder.of(source, file_of(source)))
    return examples(source, "lmms_eval", ["resps", "filtered_resps"], make)


def _example(row: Row, folder: Folder) -> Example:
    column = "resps" if row.get("resps") is not None else "filtered_resps"
    texts = list(_said(row, row.get(column), column))
    images = folder.pictures(row, "images", "image")
    turns = prompt(row, [Message("user", _input(row), "input")], len(images))
    return Example(images, turns, merged(texts, [None] * len(texts)), row.origin, truths=_target(row))


def _input(row: Row) -> str:
    """The words of the prompt: in `input`, first in `arguments`, or the document's question."""
    document = row.get("doc")
    asked = document.get("question") if isinstance(document, dict) else None
    for value in (row.get("input"), row.get("arguments"), asked):
        while isinstance(value, (list, dict)) and value:
            value = value[0] if isinstance(value, list) else next(iter(value.values()))
        if isinstance(value, str) and value.strip():
            return row.clean(value, "input")
    raise row.bad("has no prompt: input, arguments or doc.question is needed; log with --log_samples")


def _said(row: Row, value: Any, column: str) -> Iterator[str]:
    """The texts of a list of any depth."""
    if isinstance(value, list):
        for item in value:
            yield from _said(row, item, column)
    elif isinstance(value, str):
        yield row.clean(value, column)
    elif value is not None:
        raise row.bad(f"{column} holds {kind(value)} and no text; tasks that compare likelihoods have no answers")


def _target(row: Row) -> tuple[str, ...]:
    """lmms-eval writes every target as text, a list too."""
    value = row.get("target")
    several = listed(value) if isinstance(value, str) else None
    return tuple(several) if several else truths(row, "target")


def row_of(example: Example, images: Sequence[str], facts: Facts) -> dict[str, Any]:
    texts, right = [answer.text for answer in example.answers], list(example.truths)
    single = len(right) == 1 and listed(right[0]) is None
    return {
        "doc_id": facts.name,
        "input": question(example),
        **({"images": list(images)} if images else {}),
        "target": right[0] if single else str(right) if right else None,
        "resps": [texts],
        "filtered_resps": texts,
    }
