"""Files of JSON lines as the shards of one table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmjobs.data.example import BadRow, Origin
from mmjobs.data.readers.lines import parsed, places_of_lines
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.shards import Shards, local
from mmlaunch.errors import BadInput


@dataclass(frozen=True)
class JsonShards:
    """The rows of several files of JSON lines."""

    shards: Shards
    places: Any
    """For each row the number of its file, where it begins, its bytes, its line: [N, 4]."""

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shard_starts(self) -> Any:
        """The first row of each file."""
        return np.searchsorted(self.places[:, 0], np.arange(len(self.shards)))

    def row(self, index: int) -> Row:
        """Row `index`; raises `BadRow`."""
        number, begin, size, line = (int(value) for value in self.places[index])
        origin = Origin(self.shards.name(number), line)
        try:
            with self.shards.lease(number) as path, path.open("rb") as file:
                file.seek(begin)
                text = file.read(size).decode()
        except UnicodeDecodeError as error:
            raise BadRow(origin, f"is not UTF-8 at its byte {error.start}; save the file as UTF-8") from None
        except OSError as error:
            raise BadRow(origin, f"cannot be read: {error.strerror}") from None
        return parsed(origin, text)


def of_files(paths: Sequence[Path], where: object) -> JsonShards:
    """The rows in these files, which are here."""
    return table_of(local(paths), where, map(index, paths))


def table_of(shards: Shards, where: object, indexes: Iterable[Any]) -> JsonShards:
    """The rows of these files, each with its index."""
    places = [np.insert(rows, 0, number, axis=1) for number, rows in enumerate(indexes)]
    whole = np.concatenate([np.empty((0, 4), np.int64), *places])
    if not len(whole):
        raise BadInput(f"{where}: holds no rows; it needs at least one")
    return JsonShards(shards, whole)


def index(path: Path) -> Any:
    """Where each row of a file begins, its bytes and its line: [N, 3]."""
    return np.array(list(places_of_lines(path)), np.int64).reshape(-1, 3)
