"""The survey: every row looked at once before training, no image decoded: its lengths, or why it is left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple

from mmjobs.data.chat import Tokens
from mmjobs.data.encode import Processor
from mmjobs.data.example import BadRow, Example, Surplus
from mmjobs.data.images.tiling import Size
from mmjobs.data.readers.rows import Part
from mmjobs.data.requirements import missing

Gather = Callable[[Any], list[Any]]


class Usable(NamedTuple):
    """A row that can be learnt from."""

    part: int
    row: int
    prompt: int
    """Tokens, those of its images included."""
    answers: tuple[int, ...]
    images: tuple[Size, ...]
    question: bytes
    """What stays the same where the same question is asked again."""
    content: bytes
    """What stays the same for the same question with the same answers."""
    scores: tuple[float | None, ...] = ()
    room: int = 0
    """For an answer, behind this prompt."""
    uncut: int = 0
    """Of its first answer, which has another room where it is a stranger."""


class Left(NamedTuple):
    """A row that is left out."""

    part: int
    row: int
    why: Literal["bad", "overlong", "held out", "surplus"]
    origin: str
    reason: str


@dataclass(frozen=True)
class Survey:
    """All rows of some parts, in their order."""

    parts: tuple[Part, ...]
    usable: list[Usable] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    @property
    def questions(self) -> set[bytes]:
        """What is asked, for other data to leave out."""
        return {row.question for row in self.usable}

    def count(self, why: str) -> int:
        return sum(row.why == why for row in self.left)


def survey(
    parts: Sequence[Part],
    processor: Processor,
    held_out: Collection[bytes] = (),
    share: tuple[int, int] = (0, 1),
    gather: Gather = lambda mine: [mine],
    moved: Callable[[], None] = lambda: None,
) -> Survey:
    """Look at every row. Rank `share[0]` of `share[1]` looks at its own ones, and `gather` brings all together.

    Millions take time: each row has `moved`.
    """
    found: list[Usable | Left] = []
    everything = ((number, row) for number, part in enumerate(parts) for row in range(len(part.rows)))
    for number, row in islice(everything, share[0], None, share[1]):
        moved()
        found.append(_look(parts[number], number, row, processor, held_out))
    merged = sorted((one for each in gather(found) for one in each), key=lambda one: (one.part, one.row))
    usable = [one for one in merged if isinstance(one, Usable)]
    return Survey(tuple(parts), usable, [one for one in merged if isinstance(one, Left)])


def _look(part: Part, number: int, row: int, processor: Processor, held_out: Collection[bytes]) -> Usable | Left:
    try:
        example = part.rows[row]
        question = fingerprint(example)
        if question in held_out:
            return Left(number, row, "held out", str(example.origin), "its question stands in the evaluation data too")
        if what := missing(processor.requirements, example):
            raise BadRow(example.origin, what)
        tree = processor.tree(example, part.max_tiles)
        sizes = processor.sizes(example)
    except BadRow as error:
        why: Literal["bad", "surplus"] = "surplus" if isinstance(error, Surplus) else "bad"
        return Left(number, row, why, str(error.origin), error.what)
    lengths = tuple(len(answer) for answer in tree.answers)
    if not processor.fits(tree):
        what = f"{len(tree.prompt) + max(lengths, default=0)} tokens, more than {processor.longest}"
        return Left(number, row, "overlong", str(example.origin), what)
    room = processor.longest - len(tree.prompt)
    if max(lengths, default=0) > room and _different(tree.answers, room) < min(
        len(lengths), processor.requirements.least
    ):
        what = f"its answers are the same in the {room} tokens that they are cut to"
        return Left(number, row, "overlong", str(example.origin), what)
    return Usable(
        part=number,
        row=row,
        prompt=len(tree.prompt),
        answers=tuple(min(length, room) for length in lengths),
        images=sizes,
        question=question,
        content=_digest((question, example.answers, example.label)),
        scores=tuple(answer.score for answer in example.answers[: processor.requirements.most]),
        room=room,
        uncut=next(iter(lengths), 0),
    )


def _different(answers: Sequence[Tokens], room: int) -> int:
    """How many answers there still are, cut to this room."""
    return len({tuple(answer.ids[:room]) for answer in answers})


def fingerprint(example: Example) -> bytes:
    """The same for the same images and the same words before the answers, in every process."""
    return _digest(([picture.identity for picture in example.images], example.prompt))


def _digest(said: object) -> bytes:
    return hashlib.blake2b(repr(said).encode(errors="surrogatepass"), digest_size=12).digest()


def lines(left: Sequence[Left]) -> Iterator[dict[str, str]]:
    """What was left out because it is bad or too long, for the list in the run directory."""
    for one in left:
        if one.why != "held out":
            yield {"row": one.origin, "why": one.why, "reason": one.reason}
