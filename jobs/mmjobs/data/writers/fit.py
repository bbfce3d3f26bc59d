"""What the rows of a format can hold of an example; the rest is refused by name, or dropped where the user says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

from mmjobs.data.example import Example, Slot
from mmjobs.data.readers.turns import PLACEHOLDER

MANY: Final = 2**31
"""As many as there are."""


@dataclass(frozen=True)
class Holds:
    """What rows of a format hold, counted in answers, truths and so on."""

    fewest: int = 0
    """So many answers are needed."""
    most: int = MANY
    """So many answers fit."""
    images: bool = True
    typed: bool = False
    """The places of images are items of their own, and not `<image>` among the words of the user."""
    marks: str = PLACEHOLDER
    """What reads as the place of an image among the words."""
    turns: int = -1
    """A conversation fits, with so many answers at most; -1: one question alone."""
    unlearnt: bool = False
    """A single answer may follow answers that are not trained on."""
    scores: int = MANY
    """Scores fit where there are so many answers at least."""
    scored: bool = False
    """Scores are needed."""
    label: bool = False
    truths: int = 0
    followups: bool = False
    embeds: bool = False
    """The images themselves stand in the row, in base64."""
    columns: tuple[str, ...] = ()
    """Those of a table of text; without them there is no such table."""
    carried: tuple[str, ...] = ()
    """Columns that such a table has where the rows that are read have them."""


class Unfit(Exception):
    """What an example has and a format cannot hold: the part that `--drop` names, and the reason."""

    def __init__(self, part: str, what: str) -> None:
        super().__init__(what)
        self.part, self.what = part, what


def fitted(example: Example, holds: Holds, drop: Collection[str] = ()) -> tuple[Example, tuple[str, ...]]:
    """The example without what `drop` names where it does not fit, and what was dropped; raises `Unfit`."""
    needed = f"{holds.fewest} {'is' if holds.fewest == 1 else 'are'}"
    if (count := len(example.answers)) < holds.fewest:
        raise Unfit("rows", f"has {count or 'no'} answer{'' if count == 1 else 's'} where {needed} needed")
    dropped = []
    for part, (surplus, less) in PARTS.items():
        if what := surplus(example, holds):
            if part not in drop:
                raise Unfit(part, what)
            example = less(example, holds)
            dropped.append(part)
    if what := _lacks(example, holds):
        raise Unfit("rows", what)
    return example, tuple(dropped)


def _turns(example: Example, holds: Holds) -> str:
    if len(example.prompt) == 1:
        return ""
    if len(example.answers) > holds.turns:
        return f"has a conversation of {len(example.prompt)} turns" + (" and two answers" if holds.turns == 1 else "")
    earlier = [turn.in_loss for turn in example.prompt if turn.role == "assistant"]
    if len(example.answers) == 1 and earlier and not all(earlier) and not holds.unlearnt:
        return "has earlier answers that are not trained on"
    return ""


def _last_turn(example: Example, holds: Holds) -> Example:
    last = example.prompt[-1]
    slots = sum(isinstance(part, Slot) for part in last.content)
    return replace(example, prompt=(last,), images=example.images[len(example.images) - slots :])


def _answers(example: Example, holds: Holds) -> str:
    count = len(example.answers)
    return f"has {count} answer{'s' if count > 1 else ''}" if count > holds.most else ""


def _scores(example: Example, holds: Holds) -> str:
    given = [answer.score is not None for answer in example.answers]
    if any(given) and len(given) < holds.scores:
        return "has scores"
    return "has scores for some of its answers only" if any(given) and not all(given) else ""


def _no_images(example: Example) -> Example:
    turns = [replace(turn, content=(turn.text,) if turn.text else ()) for turn in example.prompt]
    return replace(example, images=(), prompt=tuple(turns))


def _counted(count: int, what: str) -> str:
    return f"has {count} {what}{'s' if count > 1 else ''}"


PARTS: Final[dict[str, tuple[Callable[[Example, Holds], str], Callable[[Example, Holds], Example]]]] = {
    "answers": (_answers, lambda example, holds: replace(example, answers=example.answers[: holds.most])),
    "scores": (
        _scores,
        lambda example, _: replace(example, answers=tuple(replace(one, score=None) for one in example.answers)),
    ),
    "images": (
        lambda example, holds: _counted(len(example.images), "image") if example.images and not holds.images else "",
        lambda example, _: _no_images(example),
    ),
    "turns": (_turns, _last_turn),
    "label": (
        lambda example, holds: (
            f"has the label {example.label}" if example.label is not None and not holds.label else ""
        ),
        lambda example, _: replace(example, label=None),
    ),
    "truths": (
        lambda example, holds: (
            _counted(len(example.truths), "right answer") if len(example.truths) > holds.truths else ""
        ),
        lambda example, holds: replace(example, truths=example.truths[: holds.truths]),
    ),
    "followups": (
        lambda example, holds: (
            _counted(len(example.followups), "later turn") if example.followups and not holds.followups else ""
        ),
        lambda example, _: replace(example, followups=()),
    ),
}
"""What may be dropped: whether an example has more of it than fits, and the example without."""


def _lacks(example: Example, holds: Holds) -> str:
    """What no dropping mends: only the whole row can be left out."""
    if holds.scored and any(answer.score is None for answer in example.answers):
        return "has no scores, and they are needed"
    if any(not answer.text.strip() for answer in example.answers):
        return "has an empty answer"
    if len({answer.text for answer in example.answers}) < len(example.answers):
        return "has the same answer twice"
    if any(
        turn.role == "user" and not any(isinstance(part, Slot) or part.strip() for part in turn.content)
        for turn in example.prompt
    ):
        return "has no words without its images"
    if example.images and not holds.typed:
        if any(isinstance(part, Slot) for turn in example.prompt if turn.role != "user" for part in turn.content):
            return "has an image outside of what the user says"
        if any(re.search(holds.marks, turn.text) for turn in example.prompt if turn.role == "user"):
            return f"has {PLACEHOLDER} among its words, and images as well"
    return ""
