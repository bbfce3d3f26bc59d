"""The `predictions` format: what `predict` writes, rows of the data with a model's answers and perhaps their scores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from mmjobs.data.example import Answer, Example
from mmjobs.data.formats.trl import prompt_messages
from mmjobs.data.readers.answers import merged, truths
from mmjobs.data.readers.folder import Folder
from mmjobs.data.readers.row import Row, kind
from mmjobs.data.readers.rows import Rows, examples, file_of
from mmjobs.data.readers.turns import prompt
from mmlaunch.recipe.data import Source

COLUMNS: tuple[tuple[str, ...], ...] = (("predictions", "prompt", "finish", "truths"),)
"""Rows with all of one of these columns are in this format, unless a format of a lower `ORDER` matches."""
ORDER = 5
"""The columns of the data that were answered stand beside these; so no other format may look first."""


def rows(source: Source) -> Rows:
    """JSON lines with `prompt` (text, or messages with `<image>` in them), `images`, `predictions`, and `truths`.

    Answers are the predictions, each text once, best first where `scores` has one for each. A row with an `error` is a
    bad row, for its reason.
    """
    make = partial(_example, folder=Folder.of(source, file_of(source)))
    return examples(source, "predictions", ["predictions"], make)


def _example(row: Row, folder: Folder) -> Example:
    if (error := row.get("error")) is not None:
        raise row.bad(f"was not answered: {error}")
    images = folder.pictures(row, "images")
    turns = prompt(row, prompt_messages(row), len(images))
    return Example(images, turns, _answers(row), row.origin, row.label(), truths(row, "truths"))


def _answers(row: Row) -> tuple[Answer, ...]:
    said = row.need("predictions")
    if not isinstance(said, list):
        raise row.bad(f"predictions is {kind(said)}; it has to be a list of texts")
    texts = [row.clean(text, f"predictions[{place}]") for place, text in enumerate(said)]
    scores: Sequence[Any] | None = row.get("scores")
    if scores is None:
        return merged(texts, [None] * len(texts))
    if not isinstance(scores, list) or len(scores) != len(texts):
        counted = f"{len(scores)} values" if isinstance(scores, list) else kind(scores)
        raise row.bad(f"scores has {counted} for {len(texts)} predictions; one for each is needed, in the same order")
    return merged(
        texts, [None if one is None else row.number(one, f"scores[{place}]") for place, one in enumerate(scores)]
    )
