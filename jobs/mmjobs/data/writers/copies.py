"""Some rows of a file in a file of their own, every field as it was read."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmjobs.data.readers.lines import Lines
from mmjobs.data.readers.parquet import Parquet
from mmjobs.data.readers.references import Resolved
from mmjobs.data.readers.rows import Part, Rows, Table
from mmjobs.data.readers.saved import Saved
from mmjobs.data.readers.tsv import Tsv
from mmjobs.data.readers.xlsx import Sheet
from mmjobs.data.writers.files import RowFile
from mmlaunch.errors import UserError
from mmlaunch.run.files import explained


def one_table(part: Part) -> Rows:
    """The rows of a source that is one table."""
    if not isinstance(part.rows, Rows):
        raise UserError(f"{part.name}: names several sets; name one of its files of rows")
    return part.rows


def _file(rows: Rows) -> Table:
    """What the rows are read from."""
    return rows.table.table if isinstance(rows.table, Resolved) else rows.table


def kinds(rows: Rows) -> tuple[str, ...]:
    """How the name of a copy may end: its layout is that of what is copied."""
    table = _file(rows)
    if isinstance(table, (Saved, Parquet)):
        return (".parquet",)
    if isinstance(table, (Tsv, Sheet)):
        return (".tsv",)
    if isinstance(table, Lines) and table.layout != "lines":
        return (".txt",) if table.layout == "text" else (".json", ".jsonl")
    return (".jsonl", ".json", ".ndjson")


@contextmanager
def copied(rows: Rows, path: Path) -> Iterator[Callable[[int], None]]:
    """Gives what copies the row at a place; the file appears when the block ends without an error."""
    table = _file(rows)
    if isinstance(table, (Saved, Parquet)):
        places = array("q")
        yield lambda place: places.append(rows.chosen[place])
        with explained(f"{path}: cannot be written"):
            table.copy(places, path)
        return
    columns = table.columns if isinstance(table, (Tsv, Sheet)) else ()
    with RowFile(path, columns) as file:
        yield lambda place: file.write(rows.values(place))
