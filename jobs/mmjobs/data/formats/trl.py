"""The `trl` format: the columns of TRL's trainers, as plain text or as conversations, with or without images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from mmjobs.data.example import Answer, Example, Picture
from mmjobs.data.readers.answers import columns_pair, compared, last, pair, spoken, worded
from mmjobs.data.readers.folder import Folder
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.rows import Rows, examples, file_of
from mmjobs.data.readers.turns import INLINE, Message, messages, prompt
from mmjobs.data.writers.fit import Holds
from mmjobs.data.writers.words import Facts
from mmjobs.data.writers.words import messages as written
from mmlaunch.recipe.data import Source

COLUMNS: tuple[tuple[str, ...], ...] = (("chosen", "rejected"), ("prompt", "completion"), ("messages",))
"""Rows with all of one of these columns are in this format, unless a format of a lower `ORDER` matches."""
ORDER = 60

HOLDS = Holds(fewest=1, most=2, typed=True, turns=2, scores=2, label=True)


def rows(source: Source) -> Rows:
    """Rows with `chosen` and `rejected`, with `completion`, or with `messages`; the first two answer `prompt`.

    Conversations may leave `prompt` out: it is then what chosen and rejected share. Plain text may not.
    """
    make = partial(example, folder=Folder.of(source, file_of(source)))
    return examples(source, "trl", ["chosen", "rejected", "completion", "messages"], make)


def example(row: Row, folder: Folder) -> Example:
    in_loss = False
    conversation: Sequence[Message]
    answers: tuple[Answer, ...]
    if row.get("chosen") is not None or row.get("rejected") is not None:
        conversation, answers = _preference(row)
    elif row.get("completion") is not None:
        conversation, answers = _completion(row)
        in_loss = True
    elif row.get("messages") is not None:
        conversation, final = last(row, messages(row, row.need("messages"), "messages"), "messages")
        answers, in_loss = (Answer(spoken(row, final)),), True
    else:
        has = ", ".join(name for name, value in row.values.items() if value is not None)
        raise row.bad(f"has no answer: one of chosen and rejected, completion, or messages is needed; it has {has}")
    if not conversation:
        raise row.bad("has an answer and nothing that it answers; add the column prompt")
    images = pictures(row, conversation, folder)
    return Example(images, prompt(row, conversation, len(images), in_loss), answers, row.origin, row.label())


def row_of(example: Example, images: Sequence[str], facts: Facts) -> dict[str, Any]:
    """One row of messages: a pair, or a completion."""
    row: dict[str, Any] = {"id": facts.name, **({"images": list(images)} if images else {})}
    row["prompt"] = written(example.prompt)
    columns = ("chosen", "rejected") if len(example.answers) == 2 else ("completion",)
    for column, answer in zip(columns, example.answers, strict=True):
        row[column] = written((), answer.text)
    if example.answers[0].score is not None:
        row |= {f"score_{column}": one.score for column, one in zip(columns, example.answers, strict=True)}
    return row | ({"label": example.label} if example.label is not None else {})


def prompt_messages(row: Row) -> tuple[Message, ...]:
    """The column `prompt`: plain text is what the user says, a conversation ends with what the user says."""
    value = row.need("prompt")
    if isinstance(value, str):
        return (Message("user", row.text("prompt"), "prompt"),)
    conversation = messages(row, value, "prompt")
    if conversation[-1].role != "user":
        raise row.bad(
            f"prompt ends with the {conversation[-1].role}; it has to end with the user, whom the answer follows"
        )
    return conversation


def pictures(row: Row, conversation: Sequence[Message], folder: Folder) -> tuple[Picture, ...]:
    """The images of the columns `images` or `image`, or those that stand in the messages themselves."""
    inline = [images_in_messages for message in conversation for images_in_messages in _inline(message.content)]
    images = folder.pictures(row, "images", "image")
    if inline and images:
        raise row.bad("has images in its messages and in a column as well; keep one of the two")
    return images or folder.collected(row, inline, "an item of type image")


def _inline(content: Any) -> list[Any]:
    """The images in a list of typed items; items that only mark a place have none."""
    images_in_messages = []
    for item in content if isinstance(content, list) else []:
        if isinstance(item, dict) and item.get("type") in ("image", "image_url"):
            values = [item[key] for key in INLINE if item.get(key) is not None]
            images_in_messages += [
                value["url"] if isinstance(value, dict) and "url" in value else value for value in values[:1]
            ]
    return images_in_messages


def _preference(row: Row) -> tuple[Sequence[Message], tuple[Answer, ...]]:
    if isinstance(row.need("chosen"), str):
        if row.get("prompt") is None:
            raise row.bad("chosen and rejected are plain text, and there is no prompt; add the column prompt")
        return prompt_messages(row), columns_pair(row)
    shared, chosen, rejected = compared(row)
    return _before(row, shared, "chosen"), pair(row, chosen, rejected)


def _completion(row: Row) -> tuple[Sequence[Message], tuple[Answer, ...]]:
    value = row.need("completion")
    if isinstance(value, str):
        return prompt_messages(row), (Answer(worded(row, value, "completion")),)
    shared, final = last(row, messages(row, value, "completion"), "completion")
    return _before(row, shared, "completion"), (Answer(spoken(row, final)),)


def _before(row: Row, shared: Sequence[Message], column: str) -> Sequence[Message]:
    """What an answer follows: the prompt, or the conversation around the answer, which has to begin with the prompt."""
    if row.get("prompt") is None:
        return shared
    begin = prompt_messages(row)
    if not shared:
        return begin
    heads = [one.same(other) for one, other in zip(begin, shared, strict=False)]
    if len(begin) > len(shared) or not all(heads):
        raise row.bad(f"{column} is a conversation that does not begin with prompt; leave prompt out, or mend it")
    return shared
