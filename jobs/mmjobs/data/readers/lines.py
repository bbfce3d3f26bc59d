"""Files of rows: JSON lines, one JSON list, or lines of text, found by their byte offsets and read one at a time."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mmjobs.data.example import BadRow, Origin
from mmjobs.data.readers.row import Row, kind
from mmlaunch.errors import BadInput

MARK = b"\xef\xbb\xbf"
"""What some editors write before the first byte of a file in UTF-8."""

Layout = Literal["lines", "list", "text"]


@dataclass(frozen=True)
class Places:
    """Where the rows of a file stand. Only their offsets are in memory: 24 bytes a row, however long a row is."""

    path: Path
    starts: array[int]
    sizes: array[int]
    numbers: array[int]
    """The line of each row, from 1 on; in a JSON list its index, from 0 on."""

    def __len__(self) -> int:
        return len(self.starts)

    def origin(self, index: int) -> Origin:
        return Origin(str(self.path), self.numbers[index])

    def text(self, index: int) -> str:
        """What stands on the disk of a row now; raises `BadRow`."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.starts[index])
                return stream.read(self.sizes[index]).decode()
        except UnicodeDecodeError as error:
            what = f"is not UTF-8 at its byte {error.start}; save the file as UTF-8"
            raise BadRow(self.origin(index), what) from None
        except OSError as error:
            raise BadRow(self.origin(index), f"cannot be read: {error.strerror}") from None


def offsets(places: Iterable[tuple[int, int, int]], count: int | None) -> tuple[array[int], array[int], array[int]]:
    """Start, size and number of the first `count` places, or of all."""
    starts, sizes, numbers = array("q"), array("q"), array("q")
    for start, size, number in islice(places, count):
        starts.append(start)
        sizes.append(size)
        numbers.append(number)
    return starts, sizes, numbers


@dataclass(frozen=True)
class Lines(Places):
    """The rows of a file of lines, or of one JSON list."""

    layout: Layout

    def row(self, index: int) -> Row:
        """Row `index`; raises `BadRow`."""
        origin, text = self.origin(index), self.text(index)
        return Row(origin, {"prompt": text}) if self.layout == "text" else parsed(origin, text)


def parsed(origin: Origin, text: str) -> Row:
    """The row that is written as one JSON object; raises `BadRow`."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRow(origin, f"is not JSON: {error.msg} at character {error.pos + 1}; one object a line") from None
    except (ValueError, RecursionError) as error:
        raise BadRow(origin, f"is not JSON that can be read: {error}") from None
    if not isinstance(values, dict):
        raise BadRow(origin, f'is {kind(values)}; a row is an object: {{"column": value, ...}}')
    return Row(origin, values)


def opened(path: Path, count: int | None = None, text: bool = False) -> Lines:
    """The first `count` rows of a file, or all; `text` makes one prompt of each line. Blank lines are no rows."""
    begins = first(path)
    if text and _is_binary(path):
        raise BadInput(f"{path}: is not text in UTF-8; it needs one prompt a line")
    layout: Layout = "text" if text else "list" if begins == b"[" else "lines"
    places = offsets(_elements(path) if layout == "list" else places_of_lines(path), count)
    if not places[0] and count != 0:
        raise BadInput(f"{path}: holds no rows; it needs at least one")
    return Lines(path, *places, layout)


def whole(path: Path) -> Any:
    """A file that is one JSON value, like a list of data sets."""
    try:
        return json.loads(path.read_bytes().removeprefix(MARK))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}:{error.lineno}:{error.colno}: is not JSON: {error.msg}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not JSON in UTF-8: {error}") from None


def first(path: Path) -> bytes:
    """The first byte that is not white space; raises `BadInput` on what cannot be a file of rows."""
    try:
        if path.is_dir():
            raise BadInput(f"{path}: is a folder; a JSON or JSONL file is expected")
        with path.open("rb") as stream:
            if not path.stat().st_size:
                raise BadInput(f"{path}: is empty (0 bytes); it needs at least one row")
            begin = stream.read(4096)
            while begin and not (rest := begin.removeprefix(MARK).strip()):
                begin = stream.read(4096)
            return rest[:1] if begin else b""
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None


def _is_binary(path: Path) -> bool:
    """Whether the file begins with zero bytes, as images do, and text with two bytes a letter."""
    with path.open("rb") as stream:
        return b"\0" in stream.read(4096)


def places_of_lines(path: Path) -> Iterator[tuple[int, int, int]]:
    """Start, size and number of each line that is not blank, without its end."""
    with path.open("rb") as stream:
        start = 0
        for number, line in enumerate(stream, 1):
            skip = len(MARK) if number == 1 and line.startswith(MARK) else 0
            bare = line.removesuffix(b"\n").removesuffix(b"\r")
            if bare[skip:].strip():
                yield start + skip, len(bare) - skip, number
            start += len(line)


def _elements(path: Path) -> Iterator[tuple[int, int, int]]:
    """Start, size and index of each element of one JSON list.

    The bytes are read as Latin-1, one character each: what holds JSON together is ASCII, and offsets stay offsets.
    """
    text = path.read_bytes().decode("latin-1")
    scan, place, index = json.JSONDecoder().raw_decode, _after(text, text.index("[") + 1), 0
    if text[place : place + 1] == "]":
        return
    try:
        while True:
            _, end = scan(text, place)
            yield place, end - place, index
            index, comma = index + 1, _after(text, end)
            if text[comma : comma + 1] == "]":
                break
            if text[comma : comma + 1] != ",":
                raise json.JSONDecodeError("a comma or the end of the list is missing", text, min(comma, len(text)))
            place = _after(text, comma + 1)
    except json.JSONDecodeError as error:
        what = f"is not a whole JSON list: {error.msg} after {index} rows"
        raise BadInput(f"{path}:{error.lineno}:{error.colno}: {what}; is the file complete?") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: element {index} cannot be read: {error}") from None


def _after(text: str, place: int) -> int:
    """The next place that is not white space."""
    while text[place : place + 1] in (" ", "\t", "\n", "\r"):
        place += 1
    return place
