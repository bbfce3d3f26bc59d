"""Tables of text with tabs between their cells, as VLMEvalKit and pandas write them, read one row at a time."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmjobs.data.example import BadRow
from mmjobs.data.readers import lines
from mmjobs.data.readers.lines import Places
from mmjobs.data.readers.row import Row
from mmlaunch.errors import BadInput

csv.field_size_limit(sys.maxsize)  # an image in base64 is one cell


@dataclass(frozen=True)
class Tsv(Places):
    """The rows below the line of column names."""

    columns: tuple[str, ...]

    def row(self, index: int) -> Row:
        """Row `index` by its columns, an empty cell as None; raises `BadRow`."""
        origin = self.origin(index)
        try:
            cells = _cells(self.text(index))
        except csv.Error as error:
            raise BadRow(origin, f"cannot be split into cells: {error}") from None
        if len(cells) != len(self.columns):
            raise BadRow(origin, f"has {len(cells)} cells for {len(self.columns)} columns; tabs separate them")
        return Row(origin, dict(zip(self.columns, (cell or None for cell in cells), strict=True)))


def opened(path: Path, count: int | None = None) -> Tsv:
    """The first `count` rows of a file, or all; blank lines are no rows."""
    lines.first(path)  # it names what cannot be a file of rows
    records = _records(path)
    try:
        start, size, _ = next(records)
        with path.open("rb") as stream:
            stream.seek(start)
            columns = tuple(_cells(stream.read(size).decode()))
    except (StopIteration, UnicodeDecodeError, csv.Error):
        raise BadInput(f"{path}: has no line of column names; tabs separate them") from None
    if len(set(columns)) < len(columns) or not all(columns):
        raise BadInput(f"{path}: its first line names a column twice, or one without a name: {', '.join(columns)}")
    places = lines.offsets(records, count)
    if not places[0] and count != 0:
        raise BadInput(f"{path}: holds no rows; it needs at least one below the column names")
    return Tsv(path, *places, columns)


def _cells(record: str) -> list[str]:
    return next(csv.reader(io.StringIO(record, newline=""), delimiter="\t"))


def _records(path: Path) -> Iterator[tuple[int, int, int]]:
    """Start, size and first line of each record: a cell in quotes may hold line ends."""
    with path.open("rb") as stream:
        place = begin = len(lines.MARK) if stream.read(len(lines.MARK)) == lines.MARK else 0
        stream.seek(place)
        first, inside = 1, False
        for number, line in enumerate(stream, 1):
            place += len(line)
            if inside or b'"' in line:
                inside = _unclosed(line, inside)
            if inside:
                continue
            bare = place - begin - (len(line) - len(line.rstrip(b"\r\n")))
            if bare > 0:
                yield begin, bare, first
            begin, first = place, number + 1
        if inside:
            yield begin, place - begin, first


def _unclosed(line: bytes, inside: bool) -> bool:
    """Whether a cell in quotes goes on in the next line; a quote that does not begin its cell is text."""
    place, begins = 0, True
    while True:
        if inside:
            place = line.find(b'"', place)
            if place < 0:
                return True
            if line[place + 1 : place + 2] == b'"':
                place += 2
            else:
                place, inside, begins = place + 1, False, False
        elif begins and line[place : place + 1] == b'"':
            place, inside = place + 1, True
        else:
            place = line.find(b"\t", place) + 1
            if not place:
                return False
            begins = True
