"""The `mdpo` format: an image, a question in Vicuna's words, a chosen and a rejected answer."""

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
from mmjobs.data.writers.words import Facts, question
from mmlaunch.recipe.data import Source

COLUMNS: tuple[tuple[str, ...], ...] = (("img_path", "prompt", "chosen", "rejected"),)
"""Rows with all of one of these columns are in this format, unless a format of a lower `ORDER` matches."""
ORDER = 20

HOLDS = Holds(fewest=2, most=2)

USER, ASSISTANT, END = "USER: ", "ASSISTANT:", "</s>"


def rows(source: Source) -> Rows:
    """A JSON list or JSON lines with `img_path`, `prompt`, `chosen` and `rejected`."""
    make = partial(_example, folder=Folder.of(source, file_of(source)))
    return examples(source, "mdpo", ["img_path", "chosen", "rejected"], make)


def _example(row: Row, folder: Folder) -> Example:
    if not folder.refused and "img_path" not in row.values:
        row.need("img_path")
    images = folder.pictures(row, "img_path")
    conversation = messages_of(row, row.text("prompt"), "prompt")
    return Example(images, prompt(row, conversation, len(images)), columns_pair(row), row.origin)


def messages_of(row: Row, text: str, column: str) -> tuple[Message, ...]:
    """The messages in a text that ends with `ASSISTANT:`; any other text is one question as a whole.

    The template's words are taken off at both ends, one space or newline between them and the question included;
    everything else stays as it is, whatever letters it begins or ends with.
    """
    body = text.removesuffix("\n").removesuffix(" ")
    if not body.endswith(ASSISTANT):
        return (Message("user", text, column),)
    body = _less_one_blank(body.removesuffix(ASSISTANT))
    system, tag, talk = body.partition(USER)
    if not tag:
        raise row.bad(f"{column} ends with {ASSISTANT} and has no {USER.strip()} before it; both or none")
    conversation = [Message("system", _less_one_blank(system), column)] if system.strip() else []
    *earlier, last = talk.split(f"{END}{USER}")
    for exchange in earlier:
        question, tag, answer = exchange.partition(f" {ASSISTANT} ")
        if not tag:
            raise row.bad(f"{column} has {END}{USER.strip()} after a turn without {ASSISTANT}; each turn needs both")
        conversation += [Message("user", question, column), Message("assistant", answer, column)]
    return (*conversation, Message("user", last, column))


def _less_one_blank(text: str) -> str:
    return text[:-1] if text.endswith((" ", "\n")) else text


def row_of(example: Example, images: Sequence[str], facts: Facts) -> dict[str, Any]:
    """One row; a question that ends with the template's own word is written inside of the template."""
    chosen, rejected = example.answers
    words = question(example)
    if words.removesuffix("\n").removesuffix(" ").endswith(ASSISTANT):
        words = f"{USER}{words} {ASSISTANT}"
    held = list(images) if len(images) > 1 or any("," in name for name in images) else next(iter(images), None)
    return {"id": facts.name, "img_path": held, "prompt": words, "chosen": chosen.text, "rejected": rejected.text}
