"""The `llava` format: conversations of human and gpt, whose last answer may be a list of ranked ones, best first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from mmjobs.data.example import Answer, Example
from mmjobs.data.readers.answers import last, ranked, spoken, worded
from mmjobs.data.readers.folder import Folder
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.rows import Rows, examples, file_of
from mmjobs.data.readers.turns import PLACEHOLDER, Message, messages, prompt
from mmjobs.data.writers.fit import MANY, Holds
from mmjobs.data.writers.words import Facts, marked, named
from mmlaunch.recipe.data import Source

COLUMNS: tuple[tuple[str, ...], ...] = (("conversations",),)
"""Rows with all of one of these columns are in this format, unless a format of a lower `ORDER` matches."""
ORDER = 10

HOLDS = Holds(fewest=1, turns=MANY, unlearnt=True, scores=1, label=True)

COLUMN = "conversations"
NAMES = {"user": "human", "assistant": "gpt", "system": "system"}


def rows(source: Source) -> Rows:
    """A JSON list or JSON lines with `conversations` and, where there are images, `image`.

    One image without `<image>` in the text comes before the first question, with a newline between them.
    """
    return examples(source, "llava", [COLUMN], partial(conversation, folder=Folder.of(source, file_of(source))))


def conversation(row: Row, folder: Folder) -> Example:
    """One row, of this format or of a set of InternVL's for fine-tuning."""
    if row.get("video") is not None:
        raise row.bad("has a video; only images are read")
    images = folder.pictures(row, "image", "images")
    before, final = last(row, messages(row, row.need(COLUMN), COLUMN), COLUMN)
    if not before:
        raise row.bad(f"{COLUMN} has an answer and no question")
    listed = _texts(final)
    turns = prompt(row, before, len(images), in_loss=listed is None)
    if not images and row.get("image") in ("", []) and any(PLACEHOLDER in turn.text for turn in turns):
        raise row.bad(f"image is empty, and the text has {PLACEHOLDER}; name a file, or leave image out for a text row")
    return Example(images, turns, _answers(row, final, listed), row.origin, row.label())


def _texts(final: Message) -> list[object] | None:
    """The ranked answers, if the last message lists some; a list of typed items is one answer."""
    content = final.content
    return content if isinstance(content, list) and not any(isinstance(item, dict) for item in content) else None


def _answers(row: Row, final: Message, listed: list[object] | None) -> tuple[Answer, ...]:
    if listed is None:
        texts = [spoken(row, final)]
    elif not listed:
        raise row.bad(f"{final.where} lists no answers; it needs at least one")
    else:
        texts = [worded(row, text, f"answer {number} of {final.where}") for number, text in enumerate(listed, 1)]
    names = [f"answers {number}" for number in range(1, len(texts) + 1)]
    return ranked(row, texts, _scores(row, len(texts)), names)


def _scores(row: Row, answers: int) -> Sequence[float | None]:
    """`scores` has one for each answer, `score` is the one of a single answer."""
    if (several := row.get("scores")) is not None:
        if not isinstance(several, list) or len(several) != answers:
            found = f"{len(several)} values" if isinstance(several, list) else "no list"
            raise row.bad(f"scores has {found} for {answers} answers; write one for each, in the same order")
        return [row.number(value, f"scores[{place}]") for place, value in enumerate(several)]
    if row.get("score") is None:
        return [None] * answers
    if answers > 1:
        raise row.bad(f"one score for {answers} answers; write scores: [...] with one for each")
    return [row.number(row.get("score"), "score")]


def row_of(example: Example, images: Sequence[str], facts: Facts) -> dict[str, Any]:
    """One row; a single answer is a list of one where earlier answers are not trained on."""
    texts, scores = [one.text for one in example.answers], [one.score for one in example.answers]
    learnt = all(turn.in_loss for turn in example.prompt if turn.role == "assistant")
    talk = [{"from": NAMES[turn.role], "value": marked(turn) if images else turn.text} for turn in example.prompt]
    final: Any = texts[0] if len(texts) == 1 and learnt else texts
    row: dict[str, Any] = {"id": facts.name, **named(images), COLUMN: [*talk, {"from": "gpt", "value": final}]}
    if scores[0] is not None:
        row |= {"score": scores[0]} if len(scores) == 1 else {"scores": scores}
    return row | ({"label": example.label} if example.label is not None else {})
