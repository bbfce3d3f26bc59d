"""Conversations: messages as rows hold them, their order, and the places of images between their words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from mmjobs.data.example import IMAGE, Content, Slot, Turn
from mmjobs.data.readers.row import Row, kind

PLACEHOLDER: Final = "<image>"

ROLES: Final[dict[str, Literal["system", "user", "assistant"]]] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip

INLINE: Final = ("image", "path", "url", "image_url")
"""Where an item of content may hold its image itself."""


@dataclass(frozen=True)
class Message:
    """One message: who speaks, and what stands in the row for it."""

    role: Literal["system", "user", "assistant"]
    content: Any
    """Text, a list of items, or (for ranked answers) a list of texts."""
    where: str
    """Its name in messages: `conversations[2]`."""

    def same(self, other: Message) -> bool:
        return (self.role, self.content) == (other.role, other.content)


def messages(row: Row, value: Any, column: str) -> tuple[Message, ...]:
    """The messages of a column, in either spelling ({from, value} and {role, content}), in an order that makes sense.

    A system message may come first; then user and assistant take turns, and the user begins. One answer alone is
    a conversation too: what it answers stands in another column.
    """
    if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        value = [dict(zip(value, item, strict=False)) for item in zip(*value.values(), strict=False)]
    if not isinstance(value, list):
        raise row.bad(f"{column} is {kind(value)}; it has to be a list of messages")
    if not value:
        raise row.bad(f"{column} is empty; it needs at least one message")
    conversation = tuple(_message(row, item, f"{column}[{place}]") for place, item in enumerate(value))
    rest = conversation[1:] if conversation[0].role == "system" else conversation
    alone = len(conversation) == 1 and conversation[0].role == "assistant"
    for place, message in enumerate(rest):
        expected = "assistant" if place % 2 or alone else "user"
        if message.role != expected:
            _misplaced(row, message, rest[place - 1].role if place else None)
    return conversation


def _message(row: Row, item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise row.bad(f"{where} is {kind(item)}; a message is an object like {{from, value}} or {{role, content}}")
    who, says = ("from", "value") if "from" in item else ("role", "content")
    if who not in item or says not in item:
        raise row.bad(f"{where} has {', '.join(map(str, item)) or 'nothing'}; a message has from and value")
    role = ROLES.get(item[who]) if isinstance(item[who], str) else None
    if role is None:
        raise row.bad(f"{where}: unknown role {item[who]!r}; roles are {', '.join(ROLES)}")
    return Message(role, item[says], where)


def _misplaced(row: Row, message: Message, before: str | None) -> None:
    if message.role == "system":
        raise row.bad(f"{message.where}: a system message; it may only be the first")
    if before is None:
        raise row.bad(f"{message.where}: begins with an answer; the user has to begin")
    between = "an answer" if before == "user" else "a question"
    raise row.bad(f"{message.where}: two {before} turns in a row; {between} has to stand between them")


def turn(row: Row, message: Message, in_loss: bool = False) -> Turn:
    """A message as a turn: the items of a list keep their order, text stays as it is written."""
    items = message.content if isinstance(message.content, list) else [{"type": "text", "text": message.content}]
    parts: list[str | Slot] = []
    for place, item in enumerate(items):
        where = f"{message.where}, item {place}" if items is message.content else message.where
        sort = item.get("type") if isinstance(item, dict) else None
        if sort in ("image", "image_url"):
            parts.append(IMAGE)
        elif sort == "text" and isinstance(item, dict):
            parts.append(row.clean(item.get("text", item.get("content")), where))
        else:
            described = f"of type {sort!r}" if isinstance(item, dict) else kind(item)
            raise row.bad(f"{where} is {described}; items are of type text or image")
    return Turn(message.role, joined(parts), in_loss and message.role == "assistant")


def joined(parts: Sequence[str | Slot]) -> Content:
    """Content without empty text, and without two texts side by side."""
    whole: list[str | Slot] = []
    for part in parts:
        if isinstance(part, str) and whole and isinstance(whole[-1], str):
            whole[-1] += part
        elif part != "":
            whole.append(part)
    return tuple(whole)


def prompt(row: Row, conversation: Sequence[Message], images: int, in_loss: bool = False) -> tuple[Turn, ...]:
    """The messages before the answer as turns, with a slot for each image; `in_loss` marks earlier answers.

    * Items of type image are the slots, and text that reads `<image>` is text.
    * Otherwise each `<image>` in what the user says is a slot when there are as many as images.
    * Where nothing marks a place, all images come first in the first user turn.
    * A newline beside an `<image>` separates the two and is no part of what the user says: the chat template writes
      its own, in training as in standard messages.
    * Without images, `<image>` is text like any other. Answers are never searched.
    """
    turns = tuple(turn(row, message, in_loss) for message in conversation)
    slots = sum(isinstance(part, Slot) for one in turns for part in one.content)
    typed = any(isinstance(message.content, list) for message in conversation)
    written = sum(one.text.count(PLACEHOLDER) for one in turns if one.role == "user") if not typed else 0
    if slots and slots != images:
        raise row.bad(f"{_counted(slots, 'item')} of type image for {_counted(images, 'image')}; as many are needed")
    if images and not slots and written not in (0, images):
        what = f"{_counted(written, PLACEHOLDER)} in the text for {_counted(images, 'image')}"
        raise row.bad(f"{what}; write as many as there are images, or none")
    if images and not slots:
        turns = _marked(turns) if written else _first(row, turns, images)
    for message, one in zip(conversation, turns, strict=True):
        if one.role != "system" and not any(isinstance(part, Slot) or part.strip() for part in one.content):
            raise row.bad(f"{message.where} is empty; it needs some text")
    return turns


def _marked(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Each `<image>` of the user becomes a slot, and takes the newlines with it that separate it from the words."""
    made = []
    for one in turns:
        if one.role == "user":
            first, *others = re.split(f"\n?{PLACEHOLDER}\n?", one.text)
            parts: list[str | Slot] = [first]
            for words in others:
                parts += [IMAGE, words]
            one = replace(one, content=joined(parts))
        made.append(one)
    return tuple(made)


def _first(row: Row, turns: tuple[Turn, ...], images: int) -> tuple[Turn, ...]:
    place = next((place for place, one in enumerate(turns) if one.role == "user"), None)
    if place is None:
        raise row.bad("has images and no user turn that could show them")
    content = joined((*[IMAGE] * images, *turns[place].content))
    return (*turns[:place], replace(turns[place], content=content), *turns[place + 1 :])


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 or what == PLACEHOLDER else "s")
