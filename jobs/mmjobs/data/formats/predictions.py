"""The `predictions` format: what `predict` writes, rows of the data with a model's answers and perhaps their scores."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from mmjobs.data.example import Answer, Example, Picture
from mmjobs.data.formats.trl import prompt_messages
from mmjobs.data.images.image_file import BytesPicture, FilePicture
from mmjobs.data.readers.answers import listed, merged, truths
from mmjobs.data.readers.folder import Folder
from mmjobs.data.readers.row import Row, kind
from mmjobs.data.readers.rows import Rows, examples, file_of
from mmjobs.data.readers.turns import PLACEHOLDER, Message, prompt
from mmlaunch.recipe.data import Source

COLUMNS: tuple[tuple[str, ...], ...] = (
    ("predictions", "prompt", "truths"),
    ("scored", "prompt", "truths"),
)
"""Rows with all of one of these columns are in this format, unless a format of a lower `ORDER` matches."""
ORDER = 5
"""The columns of the data that were answered stand beside these; so no other format may look first."""

DIGEST = re.compile("[0-9a-f]{32}")
HELD = ("image", "images", "input_image", "input_images")


def rows(source: Source) -> Rows:
    """JSON lines with `prompt` (text, or messages with `<image>` in them), `images`, `predictions`, and `truths`.

    Answers are the predictions, each text once, best first where `scores` has one for each; scored rows list the texts
    that were scored as `scored`. A row with an `error` is a bad row, for its reason.
    """
    make = partial(_example, folder=Folder.of(source, file_of(source)))
    return examples(source, "predictions", ["predictions", "scored"], make)


def _example(row: Row, folder: Folder) -> Example:
    if (error := row.get("error")) is not None:
        told = (
            [str(error.get(key)) for key in ("reason", "detail") if error.get(key)] if isinstance(error, dict) else []
        )
        raise row.bad(f"was not answered: {': '.join(told) or error}")
    images = tuple(_found(row, image, folder) for image in folder.pictures(row, "images"))
    conversation = prompt_messages(row)
    if images and sum(str(message.content).count(PLACEHOLDER) for message in conversation) == len(images):
        conversation = tuple(map(_placed, conversation))
    turns = prompt(row, conversation, len(images))
    return Example(images, turns, _answers(row), row.origin, row.label(), truths(row, "truths"))


def _placed(message: Message) -> Message:
    """`predict` writes `<image>` among the words as they are: a newline beside it is one of theirs."""
    if not isinstance(message.content, str):
        return message
    items: list[dict[str, str]] = []
    for place, words in enumerate(message.content.split(PLACEHOLDER)):
        items += [{"type": "image"}] if place else []
        items += [{"type": "text", "text": words}] if words else []
    return replace(message, content=items)


def _found(row: Row, image: Picture, folder: Folder) -> Picture:
    """An image that stood in the row of the data has no path, and is named by its digest; it still stands there."""
    if not isinstance(image, FilePicture) or not DIGEST.fullmatch(name := Path(image.path).stem):
        return image
    for column in HELD:
        value = row.get(column)
        values = (listed(value) or [value]) if isinstance(value, str) else value if isinstance(value, list) else [value]
        for held in folder.collected(row, [one for one in values if one], column):
            if isinstance(held, BytesPicture) and held.identity == name:
                return held
    return image


def _answers(row: Row) -> tuple[Answer, ...]:
    column = "scored" if row.get("scored") is not None else "predictions"
    said, scores = row.need(column), row.get("scores")
    if not isinstance(said, list):
        raise row.bad(f"{column} is {kind(said)}; it has to be a list of texts")
    texts = [row.clean(text, f"{column}[{place}]") for place, text in enumerate(said)]
    if scores is None:
        return merged(texts, [None] * len(texts))
    if not isinstance(scores, list) or len(scores) != len(texts):
        counted = f"{len(scores)} values" if isinstance(scores, list) else kind(scores)
        raise row.bad(f"scores has {counted} for {len(texts)} {column}; one for each is needed, in the same order")
    return merged(
        texts, [None if one is None else row.number(one, f"scores[{place}]") for place, one in enumerate(scores)]
    )
