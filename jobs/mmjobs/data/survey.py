"""The survey: every row is read once before training, without decoding images: its lengths, or why it is left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal

from mmjobs.data.chat import Tokens
from mmjobs.data.encode import Processor
from mmjobs.data.example import BadRow, Example, Surplus
from mmjobs.data.readers.rows import Part
from mmjobs.data.requirements import missing
from mmjobs.data.survey_rows import DIGEST_BYTES, LeftOut, Rows, Survey, Usable, flat


def survey(
    parts: Sequence[Part],
    processor: Processor,
    held_out: Collection[bytes] = (),
    moved: Callable[[], None] = lambda: None,
) -> Survey:
    """Read every row; `moved` is called for each."""
    return Survey(tuple(parts), *read_rows(parts, processor, held_out, range(count(parts)), moved))


def count(parts: Sequence[Part]) -> int:
    """The rows of all parts."""
    return sum(len(part.rows) for part in parts)


def read_rows(
    parts: Sequence[Part],
    processor: Processor,
    held_out: Collection[bytes],
    numbers: range,
    moved: Callable[[], None] = lambda: None,
) -> Rows:
    """Read some of the rows, which are counted through all parts."""

    def results() -> Iterator[Usable | LeftOut]:
        first = 0
        for number, part in enumerate(parts):
            for row in range(max(0, numbers.start - first), min(len(part.rows), numbers.stop - first)):
                moved()
                yield _read(part, number, row, processor, held_out)
            first += len(part.rows)

    return flat(results())


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
    return hashlib.blake2b(repr(content).encode(errors="surrogatepass"), digest_size=DIGEST_BYTES).digest()


def lines(left_out: Sequence[LeftOut]) -> Iterator[dict[str, str]]:
    """The rows that were left out because they are bad or too long, for the list in the run directory."""
    for one in left_out:
        if one.why != "held out":
            yield {"row": one.origin, "why": one.why, "reason": one.reason}
