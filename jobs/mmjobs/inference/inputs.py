"""The rows of a task: by their index over all sources, with the fields that the user wrote."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from mmjobs.data.example import BadPicture, BadRow, Example
from mmjobs.data.formats.registry import format_of, parts
from mmjobs.data.readers.rows import Part, file_of
from mmlaunch.errors import BadInput
from mmlaunch.recipe.data import Source, names
from mmlaunch.run.shards import InputFile

_PIECE = 1 << 22
_SHOWN = 10
"""So many rows are named in a message."""
_RECORD, _ANSWERED = frozenset({"index", "source", "prompt", "truths"}), frozenset({"predictions", "scored"})
"""The fields of every record, and those of which each that has answers has one."""


class Failed(Exception):
    """A row that has no answer: the reason in one word, by which rows are counted, and the details."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def of_row(error: BadRow) -> Failed:
    """Why a row cannot be used: its image, or something else in it."""
    of_image = any(isinstance(one, BadPicture) for one in (error.__cause__, error.__context__))
    return Failed("image" if of_image else "row", str(error))


@dataclass(frozen=True)
class InputRow:
    """One row."""

    index: int
    source: str
    values: Mapping[str, Any]
    """The row as the user wrote it."""
    example: Example | None
    tiles: int | None = None
    """The tile budget of its source."""
    failed: Failed | None = field(default=None, compare=False)
    predicted: bool = False
    """Whether its answers are those of a model."""

    @property
    def own_source(self) -> str:
        """What it is counted under: its file, or, where it is a record of ours, what that was counted under."""
        return _kept_source(self.values) or self.source

    @property
    def truths(self) -> list[str]:
        """All answers that the data call right; what a model has answered is none of them."""
        if self.example is None:
            return []
        own = [] if self.predicted else [answer.text for answer in self.example.answers[:1]]
        return list(self.example.truths) or own


class InputRows(Sequence[InputRow]):
    """All rows of some sources, one source after the other; each is read when it is needed."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._parts: list[tuple[str, bool, Part]] = []
        for name, source in zip(names(sources), sources, strict=True):
            predicted = format_of(source).name == "predictions"
            self._parts += [(name, predicted, part) for part in parts(source)]
        self._starts = [0, *accumulate(len(part.rows) for *_, part in self._parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: Any) -> Any:
        number = bisect_right(self._starts, index) - 1
        name, predicted, part = self._parts[number]
        place = index - self._starts[number]
        values: Mapping[str, Any] = {}
        try:
            values = part.values(place)
            return InputRow(index, name, values, part.rows[place], part.max_tiles, predicted=predicted)
        except BadRow as error:
            return InputRow(index, name, values, None, part.max_tiles, of_row(error))


def measured(sources: Sequence[Source]) -> list[InputFile]:
    """The number of rows of each source, and what tells whether it has changed."""
    found = []
    for name, source in zip(names(sources), sources, strict=True):
        check_numbers(source)
        rows = sum(len(part.rows) for part in parts(source))
        size, digest = content_of(source)
        found.append(InputFile(name, source.path or "", rows, size, digest))
    return found


def sources_within(sources: Sequence[Source]) -> list[str]:
    """The sources that the records in files of predictions are counted under."""
    within = set[str]()
    for part in (part for one in sources if format_of(one).name == "predictions" for part in parts(one)):
        for place in range(len(part.rows)):
            with suppress(BadRow):  # it will fail, for its own reason
                within.add(_kept_source(part.values(place)))
    return sorted(within - {""})


def _kept_source(values: Mapping[str, Any]) -> str:
    """The source that a record of ours names; empty for other rows, whose field of that name is the user's."""
    source = values.get("source")
    is_record = values.keys() >= _RECORD and not values.keys().isdisjoint(_ANSWERED)
    return source if is_record and isinstance(source, str) else ""


def check_numbers(source: Source) -> None:
    """Refuse a file of predictions that has a row twice, or lacks one: their numbers are 0, 1, 2, ..."""
    if format_of(source).name != "predictions" or source.skip or source.limit:
        return
    counts, unnumbered = Counter[int](), 0
    for part in parts(source):
        for place in range(len(part.rows)):
            try:
                number = part.values(place).get("index")
            except BadRow:  # it will fail, for its own reason
                number = None
            if isinstance(number, int):
                counts[number] += 1
            else:
                unnumbered += 1
    double = sorted(number for number, count in counts.items() if count > 1)
    missing = [number for number in range(counts.total() + unnumbered) if number not in counts]
    for what, numbers in (("twice", double), ("missing", missing if counts and not unnumbered else [])):
        if numbers:
            shown = f"{', '.join(map(str, numbers[:_SHOWN]))}{' ...' if len(numbers) > _SHOWN else ''}"
            right = "put it right, or take the field index away to use the rows as they are"
            are = "s are" if len(numbers) > 1 else " is"
            raise BadInput(f"{source.path}: row{are} {what} in this file of predictions: {shown}; {right}")


def content_of(source: Source) -> tuple[int, str]:
    """The bytes of a source's files, and a digest of their names and their content; images are not among them."""
    if source.path is None:
        return 0, ""
    path, digest, size = file_of(source), hashlib.blake2b(digest_size=16), 0
    files = {path} if path.is_file() else {file for file in path.rglob("*") if _holds_rows(file)}
    tables = (getattr(part.rows, "table", None) for part in parts(source))
    files |= {Path(named) for table in tables if (named := getattr(table, "path", None))}  # a meta file names others
    for file in sorted(file for file in files if file.is_file()):
        digest.update(f"{file.relative_to(path) if file.is_relative_to(path) else file.name}\0".encode())
        with file.open("rb") as stream:
            while piece := stream.read(_PIECE):
                digest.update(piece)
                size += len(piece)
    return size, digest.hexdigest()


def check_unchanged(files: Sequence[InputFile], sources: Sequence[Source]) -> None:
    """Refuse to go on with other rows than those that were split at submission."""
    for known, source in zip(files, sources, strict=True):
        size, digest = content_of(source)
        if (size, digest) != (known.bytes, known.digest):
            what = f"{known.path} has changed since the task was submitted ({known.bytes:,} bytes, now {size:,})"
            raise BadInput(f"data.input: {what}; put it back, or submit a new task")


def _holds_rows(file: Path) -> bool:
    return file.is_file() and file.suffix in (
        ".json",
        ".jsonl",
        ".ndjson",
        ".parquet",
        ".arrow",
        ".tar",
        ".tsv",
        ".csv",
        ".txt",
    )
