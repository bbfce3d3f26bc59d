"""The survey: every row is read once before training, without decoding images: its lengths, or why it is left out."""

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
    """A row that can be trained on."""

    part: int
    row: int
    prompt: int
    """Tokens, including those of its images."""
    answers: tuple[int, ...]
    images: tuple[Size, ...]
    question: bytes
    """A digest of the question: equal where the same question is asked again."""
    content: bytes
    """A digest of the question and its answers."""
    scores: tuple[float | None, ...] = ()
    answer_space: int = 0
    """Tokens that an answer may have after this prompt."""
    first_answer: int = 0
    """Tokens of its first answer before it is cut; as a mismatched answer it stands after another prompt."""


class LeftOut(NamedTuple):
    """A row that is left out."""

    part: int
    row: int
    why: Literal["bad", "overlong", "held out", "surplus", "same answers"]
    origin: str
    reason: str


@dataclass(frozen=True)
class Survey:
    """All rows of some parts, in their order."""

    parts: tuple[Part, ...]
    usable: list[Usable] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def questions(self) -> set[bytes]:
        """The digests of all questions, for other data to leave out."""
        return {row.question for row in self.usable}

    def count(self, why: str) -> int:
        return sum(row.why == why for row in self.left_out)


def survey(
    parts: Sequence[Part],
    processor: Processor,
    held_out: Collection[bytes] = (),
    share: tuple[int, int] = (0, 1),
    gather: Gather = lambda value: [value],
    moved: Callable[[], None] = lambda: None,
) -> Survey:
    """Read every row. Rank `share[0]` of `share[1]` reads its share, and `gather` returns those of all ranks.

    `moved` is called for each row: millions of them take time, and a watchdog is waiting.
    """
    results: list[Usable | LeftOut] = []
    everything = ((number, row) for number, part in enumerate(parts) for row in range(len(part.rows)))
    for number, row in islice(everything, share[0], None, share[1]):
        moved()
        results.append(_read(parts[number], number, row, processor, held_out))
    merged = sorted((one for of_rank in gather(results) for one in of_rank), key=lambda one: (one.part, one.row))
    usable = [one for one in merged if isinstance(one, Usable)]
    return Survey(tuple(parts), usable, [one for one in merged if isinstance(one, LeftOut)])


def _read(part: Part, number: int, row: int, processor: Processor, held_out: Collection[bytes]) -> Usable | LeftOut:
    try:
        example = part.rows[row]
        question = fingerprint(example)
        if question in held_out:
            return LeftOut(
                number, row, "held out", str(example.origin), "its question stands in the evaluation data too"
            )
        if what := missing(processor.requirements, example):
            raise BadRow(example.origin, what)
        tree = processor.tree(example, part.max_tiles)
        sizes = processor.sizes(example)
    except BadRow as error:
        why: Literal["bad", "surplus"] = "surplus" if isinstance(error, Surplus) else "bad"
        return LeftOut(number, row, why, str(error.origin), error.what)
    lengths = tuple(len(answer) for answer in tree.answers)
    least = min(len(lengths), processor.requirements.least)
    if _different(tree.answers) < least:
        return LeftOut(number, row, "same answers", str(example.origin), "its answers are the same tokens: no pair")
    if not processor.fits(tree):
        what = f"{len(tree.prompt) + max(lengths, default=0)} tokens, more than {processor.longest}"
        return LeftOut(number, row, "overlong", str(example.origin), what)
    answer_space = processor.longest - len(tree.prompt)
    if max(lengths, default=0) > answer_space and _different(tree.answers, answer_space) < least:
        what = f"its answers are the same in the {answer_space} tokens that they are cut to"
        return LeftOut(number, row, "overlong", str(example.origin), what)
    return Usable(
        part=number,
        row=row,
        prompt=len(tree.prompt),
        answers=tuple(min(length, answer_space) for length in lengths),
        images=sizes,
        question=question,
        content=_digest((question, example.answers, example.label)),
        scores=tuple(answer.score for answer in example.answers[: processor.requirements.most]),
        answer_space=answer_space,
        first_answer=next(iter(lengths), 0),
    )


def _different(answers: Sequence[Tokens], answer_space: int | None = None) -> int:
    """How many different answers there are, when they are cut to this length."""
    return len({tuple(answer.ids[:answer_space]) for answer in answers})


def fingerprint(example: Example) -> bytes:
    """A digest of the images and the words before the answers; the same in every process."""
    return _digest(([picture.identity for picture in example.images], example.prompt))


def _digest(content: object) -> bytes:
    return hashlib.blake2b(repr(content).encode(errors="surrogatepass"), digest_size=12).digest()


def lines(left_out: Sequence[LeftOut]) -> Iterator[dict[str, str]]:
    """The rows that were left out because they are bad or too long, for the list in the run directory."""
    for one in left_out:
        if one.why != "held out":
            yield {"row": one.origin, "why": one.why, "reason": one.reason}
