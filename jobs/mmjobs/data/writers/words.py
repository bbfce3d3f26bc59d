"""Turns as the rows of a format write them, so that reading them gives the same turns again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmjobs.data.example import Example, Slot, Turn
from mmjobs.data.readers.turns import PLACEHOLDER

NAMES = ("id", "question_id", "input_index", "index", "doc_id")
"""`predict` numbers its rows with `index`, and keeps another number of the data as `input_index`."""
GROUPS = ("category", "subset")


@dataclass(frozen=True)
class Facts:
    """What a row is called, and the group it belongs to: formats of benchmarks write both."""

    name: str | int
    category: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    """The row as it was read, for columns that the format has of its own."""

    @classmethod
    def of(cls, values: Mapping[str, Any], place: int) -> Facts:
        """From the row as it was read; a row without a name is called by its place."""
        names = [values[column] for column in NAMES if isinstance(values.get(column), (str, int))]
        groups = [values[column] for column in GROUPS if isinstance(values.get(column), str)]
        return cls(names[0] if names else place, groups[0] if groups else None, values)


def marked(turn: Turn) -> str:
    """The words with `<image>` at each slot.

    Reading takes one newline on each side of it away: there is one where the words have a newline of their own there,
    and behind an image that begins the turn, as LLaVA writes it.
    """
    text = ""
    for place, part in enumerate(turn.content):
        if isinstance(part, Slot):
            text += "\n" if text.endswith("\n") or (place and isinstance(turn.content[place - 1], Slot)) else ""
            text += PLACEHOLDER
        else:
            leads = bool(place) and all(isinstance(one, Slot) for one in turn.content[:place])
            text += "\n" if leads or (place and part.startswith("\n")) else ""
            text += part
    return text


def question(example: Example) -> str:
    """The words of the one turn of a prompt; without `<image>` where images come first, as reading puts them there."""
    (turn,) = example.prompt
    rest = turn.content[len(example.images) :]
    if not example.images or (rest and all(isinstance(part, str) and part.strip() for part in rest)):
        return turn.text
    return marked(turn)


def message(turn: Turn) -> dict[str, Any]:
    """A standard message; one with images is a list of items."""
    if all(isinstance(part, str) for part in turn.content):
        return {"role": turn.role, "content": turn.text}
    items = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in turn.content]
    return {"role": turn.role, "content": items}


def messages(turns: Sequence[Turn], *answer: str) -> list[dict[str, Any]]:
    """A conversation, perhaps with the answer that it ends with."""
    return [*map(message, turns), *({"role": "assistant", "content": text} for text in answer)]


def named(images: Sequence[str]) -> dict[str, Any]:
    """The column `image` of one, or of a list; a name with a comma would be read as two."""
    if not images:
        return {}
    return {"image": images[0] if len(images) == 1 and "," not in images[0] else list(images)}
