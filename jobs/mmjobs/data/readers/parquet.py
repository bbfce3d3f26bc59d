"""Parquet files, read where they are: only the places of their row groups are in memory, and nothing is copied.

A row is read with its row group, or with a piece of it where that is large. Each process keeps the pieces that it has
used last, up to a number of bytes, whatever the number of rows.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmjobs.data.example import BadRow, Origin
from mmjobs.data.readers import saved, splits
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.shards import Shards, local
from mmlaunch.errors import BadInput

KEPT_BYTES = 256 << 20
"""What a process keeps decoded."""
PIECE_BYTES = 32 << 20
"""A larger row group is decoded in pieces of about this size."""
_BUFFER = 1 << 20
"""A column is read from the file in pieces of this size, and not at once."""
SHARD, GROUP, FIRST, ROWS, BYTES = range(5)
"""The columns of the index: a row group's file, its number in it, its first row in the table, its rows and bytes."""


@dataclass(frozen=True)
class Footer:
    """What stands at the end of a file: its columns, and the rows and bytes of its row groups."""

    schema: Any
    groups: Any
    """[G, 2]"""


@dataclass(frozen=True)
class Parquet:
    """The rows of one file or several; images stay undecoded, as {bytes, path}."""

    shards: Shards
    schema: Any
    """The columns as `datasets` reads them: those of the first file."""
    groups: Any
    """The row groups that have rows: [G, 5]."""
    token: bytes = field(default_factory=lambda: os.urandom(8))
    """Tells tables apart in what a process keeps; a copy of this one in a worker has the same."""

    def __len__(self) -> int:
        return int(self.groups[-1, FIRST] + self.groups[-1, ROWS])

    @property
    def shard_starts(self) -> Any:
        """The first row of each file."""
        first = np.searchsorted(self.groups[:, SHARD], np.arange(len(self.shards)))
        return np.r_[self.groups[:, FIRST], len(self)][first]

    def row(self, index: int) -> Row:
        group = int(np.searchsorted(self.groups[:, FIRST], index, side="right")) - 1
        place = index - int(self.groups[group, FIRST])
        origin = self._origin(group, place)
        try:
            with readable():
                piece, begin = self._piece(group, place)
                (values,) = piece.slice(place - begin, 1).to_pylist()
        except (OSError, ValueError) as error:
            raise BadRow(origin, f"cannot be read from the table: {saved.reason(error)}") from None
        return Row(origin, values)

    def copy(self, places: Sequence[int], path: Path) -> None:
        """Some of the rows as one parquet file, which appears when it is whole."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
        try:
            with pq.ParquetWriter(temporary, self.schema) as writer:
                for start in range(0, len(places), 100):
                    rows = [self._slice(place) for place in places[start : start + 100]]
                    writer.write_table(pa.concat_tables(rows))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _slice(self, index: int) -> Any:
        group = int(np.searchsorted(self.groups[:, FIRST], index, side="right")) - 1
        piece, begin = self._piece(group, index - int(self.groups[group, FIRST]))
        table = piece.slice(index - int(self.groups[group, FIRST]) - begin, 1)
        return table if table.schema.equals(self.schema, check_metadata=True) else table.cast(self.schema)

    def _origin(self, group: int, place: int) -> Origin:
        shard = int(self.groups[group, SHARD])
        first = self.groups[np.searchsorted(self.groups[:, SHARD], shard), FIRST]
        return Origin(self.shards.name(shard), int(self.groups[group, FIRST] - first) + place)

    def _piece(self, group: int, place: int) -> tuple[Any, int]:
        """The decoded rows around a place of a row group, and the place of their first one."""
        rows, size = int(self.groups[group, ROWS]), int(self.groups[group, BYTES])
        step = max(1, min(rows, rows * PIECE_BYTES // max(1, size)))
        number = place // step
        key = (self.token, group, number)
        if (piece := KEPT.get(key)) is None:
            piece = self._read(group, number * step, min(rows, (number + 1) * step))
            KEPT.add(key, piece)
        return piece, number * step

    def _read(self, group: int, begin: int, end: int) -> Any:
        """Some rows of a row group; those before them are decoded too, a piece at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        shard, number, rows = (int(self.groups[group, column]) for column in (SHARD, GROUP, ROWS))
        with self.shards.lease(shard) as path, pq.ParquetFile(path, buffer_size=_BUFFER) as file:
            if file.num_row_groups <= number or file.metadata.row_group(number).num_rows != rows:
                raise ValueError("the file has changed since it was opened: it has other row groups")
            batches, at = [], 0
            for batch in file.iter_batches(end - begin, row_groups=[number], use_threads=False):
                if at + len(batch) > begin:
                    batches.append(batch.slice(max(0, begin - at), end - max(at, begin)))
                at += len(batch)
                if at >= end:
                    break
            table = pa.Table.from_batches(batches, file.schema_arrow)
        return table if table.schema.equals(self.schema) else saved.cast(table, self.schema)


class Kept:
    """The pieces that this process has used last; a worker begins without those of its rank."""

    def __init__(self) -> None:
        self._pieces: OrderedDict[tuple[bytes, int, int], Any] = OrderedDict()
        self.bytes = 0

    def clear(self) -> None:
        self._pieces.clear()
        self.bytes = 0

    def get(self, key: tuple[bytes, int, int]) -> Any:
        if key in self._pieces:
            self._pieces.move_to_end(key)
        return self._pieces.get(key)

    def add(self, key: tuple[bytes, int, int], piece: Any) -> None:
        self._pieces[key] = piece
        self.bytes += piece.nbytes
        while self.bytes > KEPT_BYTES and len(self._pieces) > 1:
            self.bytes -= self._pieces.popitem(last=False)[1].nbytes


KEPT = Kept()
os.register_at_fork(after_in_child=KEPT.clear)


def opened(path: Path, split: str | None) -> Parquet:
    """The table in a parquet file, or in those of a folder; raises `BadInput`."""
    if path.is_file():
        splits.check_file(path, split)
        return of_files([path], path)
    of_split = splits.of_files(str(file.relative_to(path)) for file in path.rglob("*.parquet"))
    if not of_split:
        names = sorted(entry.name for entry in path.iterdir())
        holds = f"holds {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else "is empty"
        raise BadInput(f"{path}: is a folder without parquet files, and not one that save_to_disk wrote; it {holds}")
    return of_files([path / name for name in of_split[splits.chosen(path, sorted(of_split), split)]], path)


def of_files(paths: Sequence[Path], where: object) -> Parquet:
    """The table in these files, which are here."""
    return table_of(local(paths), where, map(_footer, paths))


def table_of(shards: Shards, where: object, footers: Iterable[Footer]) -> Parquet:
    """The table of these files, each with its footer."""
    schema, groups = None, [np.empty((0, 5), np.int64)]
    for shard, footer in enumerate(footers):
        schema = footer.schema if schema is None else schema
        if unknown := [name for name in footer.schema.names if name not in schema.names]:
            what = f"has the columns {', '.join(unknown)}, which {shards.name(0)} lacks"
            raise BadInput(f"{shards.name(shard)}: {what}; files of one table have the same columns")
        of_file = np.zeros((len(footer.groups), 5), np.int64)
        of_file[:, SHARD], of_file[:, GROUP] = shard, np.arange(len(of_file))
        of_file[:, [ROWS, BYTES]] = footer.groups
        groups.append(of_file[of_file[:, ROWS] > 0])
    index = np.concatenate(groups)
    if not len(index):
        raise BadInput(f"{where}: holds no rows; it needs at least one")
    index[:, FIRST] = np.cumsum(index[:, ROWS]) - index[:, ROWS]
    return Parquet(shards, schema, index)


def footer(file: Any) -> Footer:
    """The footer of a file, which is given by its path or open."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened_file:
        metadata = opened_file.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        sizes = [(group.num_rows, group.total_byte_size) for group in groups]
        return Footer(opened_file.schema_arrow, np.array(sizes, np.int64).reshape(-1, 2))


def schema_of(content: bytes) -> Any:
    """The columns that a schema was serialised from."""
    import pyarrow as pa

    return pa.ipc.read_schema(pa.py_buffer(content))


def _footer(path: Path) -> Footer:
    try:
        with readable():
            return footer(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read as a table: {saved.reason(error)}; is the file complete?") from None


@contextmanager
def readable() -> Iterator[None]:
    """All errors of pyarrow as `OSError` or `ValueError`."""
    import pyarrow as pa

    try:
        yield
    except BadInput:
        raise
    except (pa.ArrowException, TypeError, LookupError, NotImplementedError) as error:
        raise ValueError(saved.reason(error)) from error
