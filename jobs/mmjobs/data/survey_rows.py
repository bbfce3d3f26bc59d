"""What a survey knows of every row, as flat arrays: some hundred bytes a row, in a file that processes map together."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, overload

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch

from mmjobs.data.images.tiling import Size
from mmjobs.data.readers.rows import Part
from mmjobs.data.tensor_file import writing

Why = Literal["bad", "overlong", "held out", "surplus", "same answers"]
Array = np.ndarray[Any, np.dtype[Any]]
Arrays = Mapping[str, Array]
T = TypeVar("T")
DIGEST_BYTES = 12
_DIGEST = "blake2b"
_WHY: tuple[Why, ...] = ("bad", "overlong", "held out", "surplus", "same answers")


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
    why: Why
    origin: str
    reason: str


class Lists:
    """Lists of different lengths, one behind the other in one array."""

    def __init__(self, values: Array, ends: Array) -> None:
        self.values, self.ends = values, ends

    def __getitem__(self, place: int) -> Array:
        return self.values[self.ends[place - 1] if place else 0 : self.ends[place]]

    def counts_at(self, places: Array) -> Array:
        """The lengths of these lists."""
        counts: Array = self.ends[places] - np.where(places > 0, self.ends[places - 1], 0)
        return counts


class FlatRows(Sequence[T]):
    """Rows by their number, each made of arrays when it is read."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays

    @abstractmethod
    def _at(self, place: int) -> T: ...

    def __len__(self) -> int:
        return len(self.arrays["part"])

    @overload
    def __getitem__(self, number: int) -> T: ...
    @overload
    def __getitem__(self, number: slice) -> list[T]: ...
    def __getitem__(self, number: int | slice) -> T | list[T]:
        places = range(len(self))[number]
        return self._at(places) if isinstance(places, int) else [self._at(place) for place in places]


class UsableRows(FlatRows[Usable]):
    """Usable rows by their number."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__(arrays)
        self.answers, self.images, self.scores = (
            Lists(arrays[name], arrays[f"{name}_end"]) for name in ("answers", "images", "scores")
        )

    @classmethod
    def of(cls, rows: Sequence[Usable]) -> UsableRows:
        numbers: dict[str, Array] = {
            name: np.array([getattr(row, name) for row in rows], dtype=kind)
            for name, kind in {"part": np.int32, "row": np.int64, "prompt": np.int32, "answer_space": np.int32,
                               "first_answer": np.int32}.items()
        }  # fmt: skip
        digests = {name: _digests([getattr(row, name) for row in rows]) for name in ("question", "content")}
        total = np.array([row.prompt + sum(row.answers) for row in rows], dtype=np.int32)
        answers = _lists("answers", [row.answers for row in rows], np.int32)
        images = _lists("images", [row.images for row in rows], np.int32, 2)
        numbered = [[np.nan if score is None else score for score in row.scores] for row in rows]
        scores = _lists("scores", numbered, np.float64)
        return cls({**numbers, **digests, "total": total, **answers, **images, **scores})

    def _at(self, place: int) -> Usable:
        one = self.arrays
        return Usable(
            part=int(one["part"][place]),
            row=int(one["row"][place]),
            prompt=int(one["prompt"][place]),
            answers=tuple(self.answers[place].tolist()),
            images=tuple((width, height) for width, height in self.images[place].tolist()),
            question=one["question"][place].tobytes(),
            content=one["content"][place].tobytes(),
            scores=tuple(None if score != score else score for score in self.scores[place].tolist()),
            answer_space=int(one["answer_space"][place]),
            first_answer=int(one["first_answer"][place]),
        )


class LeftOutRows(FlatRows[LeftOut]):
    """Rows that are left out, by their number; their words are read when somebody asks for them."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__(arrays)
        self._texts = Lists(arrays["text"], arrays["text_end"])

    @classmethod
    def of(cls, rows: Sequence[LeftOut]) -> LeftOutRows:
        numbers: dict[str, Array] = {
            "part": np.array([row.part for row in rows], dtype=np.int32),
            "row": np.array([row.row for row in rows], dtype=np.int64),
            "why": np.array([_WHY.index(row.why) for row in rows], dtype=np.uint8),
        }
        texts = [list(json.dumps([row.origin, row.reason]).encode()) for row in rows]
        return cls({**numbers, **_lists("text", texts, np.uint8)})

    def _at(self, place: int) -> LeftOut:
        one = self.arrays
        origin, reason = json.loads(self._texts[place].tobytes())
        return LeftOut(int(one["part"][place]), int(one["row"][place]), _WHY[one["why"][place]], origin, reason)

    def numbers(self, why: Why) -> Array:
        """The rows that are left out for this reason."""
        return np.flatnonzero(self.arrays["why"] == _WHY.index(why))


@dataclass(frozen=True)
class Survey:
    """All rows of some parts, in their order."""

    parts: tuple[Part, ...]
    usable: UsableRows = field(default_factory=lambda: UsableRows.of([]))
    left_out: LeftOutRows = field(default_factory=lambda: LeftOutRows.of([]))

    @cached_property
    def questions(self) -> set[bytes]:
        """The digests of all questions, for other data to leave out."""
        content = self.usable.arrays["question"].tobytes()
        return {content[start : start + DIGEST_BYTES] for start in range(0, len(content), DIGEST_BYTES)}

    def count(self, why: Why) -> int:
        return len(self.left_out.numbers(why))


Rows = tuple[UsableRows, LeftOutRows]


def flat(results: Iterable[Usable | LeftOut]) -> Rows:
    """Rows as they were read, in arrays."""
    both = list(results)
    usable = [one for one in both if isinstance(one, Usable)]
    return UsableRows.of(usable), LeftOutRows.of([one for one in both if isinstance(one, LeftOut)])


def joined(blocks: Sequence[Rows]) -> Rows:
    """Blocks of rows, one behind the other."""
    usable, left_out = zip(*blocks, strict=True) if blocks else ((), ())
    return _join(usable, UsableRows, UsableRows.of), _join(left_out, LeftOutRows, LeftOutRows.of)


def write(path: Path, rows: Rows) -> None:
    """Write one file, whole or not at all, with a digest of its content."""
    usable, left_out = rows
    state = {f"usable.{name}": array for name, array in usable.arrays.items()}
    state |= {f"left_out.{name}": array for name, array in left_out.arrays.items()}
    with writing(path) as file:
        safetensors.numpy.save_file(state, file, metadata={_DIGEST: _digest(state)})


def read(path: Path, check: bool = True) -> Rows:
    """The rows of a file, mapped into memory. Raises `ValueError` where `check` finds that it is damaged."""
    try:
        # As tensors they are mapped; numpy's own reader would copy them.
        state = {name: tensor.numpy() for name, tensor in safetensors.torch.load_file(path).items()}
        if check and _written(path) != _digest(state):
            raise ValueError(f"{path}: its content is not what was written")
        usable, left_out = (_of_kind(state, kind) for kind in ("usable.", "left_out."))
        return UsableRows(usable), LeftOutRows(left_out)
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: {error}") from error


def _written(path: Path) -> str | None:
    with safetensors.safe_open(path, "pt") as file:
        return (file.metadata() or {}).get(_DIGEST)


def _of_kind(state: Arrays, kind: str) -> Arrays:
    return {name.removeprefix(kind): array for name, array in state.items() if name.startswith(kind)}


def _digest(state: Arrays) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        digest.update(f"{name} {state[name].shape} {state[name].dtype} ".encode())
        digest.update(state[name].tobytes())
    return digest.hexdigest()


def _digests(values: Sequence[bytes]) -> Array:
    return np.frombuffer(b"".join(values), dtype=np.uint8).reshape(len(values), DIGEST_BYTES)


def _lists(name: str, lists: Sequence[Sequence[Any]], kind: type, width: int = 0) -> dict[str, Array]:
    ends = np.cumsum([len(one) for one in lists], dtype=np.int64)
    values: Array = np.array([value for one in lists for value in one], dtype=kind)
    return {name: values.reshape(-1, width) if width else values, f"{name}_end": ends}


def _join(blocks: Sequence[Any], kind: Callable[[Arrays], T], empty: Callable[[Sequence[Any]], T]) -> T:
    if not blocks:
        return empty([])
    arrays = {}
    for name in blocks[0].arrays:
        pieces = [block.arrays[name] for block in blocks]
        if name.endswith("_end"):  # each block counts from its own beginning
            begins = np.cumsum([0, *(piece[-1] if len(piece) else 0 for piece in pieces[:-1])])
            pieces = [piece + begin for piece, begin in zip(pieces, begins, strict=True)]
        arrays[name] = np.concatenate(pieces)
    return kind(arrays)
