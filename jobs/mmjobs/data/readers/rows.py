"""What all formats are made of: a table of rows, those of them that a source asks for, and examples made of each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from mmjobs.data.example import BadRow, Example, LazyExamples
from mmjobs.data.readers import hub, json_shards, lines, parquet, saved, streamed, tars, tsv, xlsx
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.shards import Shards
from mmlaunch.errors import BadInput
from mmlaunch.recipe.data import Source

LOOK = 20
"""So many rows at the beginning tell whether a file is of a format at all."""


class Table(Protocol):
    """Rows by their place in a file."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """Raises `BadRow` for a row that cannot be read."""


@runtime_checkable
class Sharded(Table, Protocol):
    """A table that is kept in several files, of which some may be read after the others."""

    @property
    def shards(self) -> Shards: ...

    @property
    def shard_starts(self) -> Any:
        """The first row of each file: [S]; that of the next one for a file without rows."""


@dataclass(frozen=True)
class Rows(LazyExamples):
    """The chosen rows of a table; a row that no example can be made of raises `BadRow`."""

    table: Table
    chosen: Sequence[int]
    make: Callable[[Row], Example]

    def __len__(self) -> int:
        return len(self.chosen)

    def at(self, place: int) -> Example:
        return self.make(self.table.row(self.chosen[place]))

    def values(self, place: int) -> Mapping[str, Any]:
        return self.table.row(self.chosen[place]).values


@dataclass(frozen=True)
class Part:
    """Rows that share the settings of a mixture; most sources are one part, one of named sets has one for each."""

    name: str
    rows: Sequence[Example]
    repeat: float = 1.0
    """2 shows every row twice, 1.5 half of them twice, 0.3 a seeded 30 percent; 0 none."""
    augment: Literal["none", "jpeg"] = "none"
    max_tiles: int | None = None
    """A smaller tile budget than the model's."""

    def values(self, place: int) -> Mapping[str, Any]:
        """The row at a place as it was read; raises `BadRow`."""
        return self.rows.values(place) if isinstance(self.rows, LazyExamples) else {}


def shards_of(part: Part) -> Shards | None:
    """The files that the rows of a part are in, where it is known."""
    table = getattr(part.rows, "table", None)
    table = getattr(table, "table", table)  # what `Resolved` wraps
    return table.shards if isinstance(table, Sharded) else None


def is_streamed(part: Part) -> bool:
    """Whether the files of a part come from elsewhere when they are read."""
    return (shards := shards_of(part)) is not None and shards.streamed


def file_of(source: Source) -> Path:
    """Where a source is; raises `BadInput` when it is not there. Of what is streamed it is the name alone."""
    if source.streaming:
        return Path(str(source.path))
    if source.config is not None:
        return hub.fetched_files(str(source.path), source.config, source.split)[0]
    if source.path is not None and hub.is_hub(source.path):
        return hub.fetched(source.path)
    path = Path(source.path or "").expanduser()
    try:
        if source.path is not None and path.exists():
            return path
    except OSError as error:
        raise BadInput(f"{source.path}: cannot be read: {error.strerror}") from None
    raise BadInput(f"{source.path}: no such file or folder")


def called(source: Source) -> str:
    """What a source is called in messages."""
    return str(source.path if source.streaming else file_of(source))


def table_of(source: Source, count: int | None = None, text: bool = False) -> Table:
    """The rows of a source, whatever holds them; of a file of lines no more than `count` are looked for."""
    if source.streaming:
        table: Table = streamed.table_of(source)
        return table
    if source.config is not None:
        return _of_files(source, count)
    path, split = file_of(source), source.split
    if tars.is_tars(path):
        if split is not None:
            raise BadInput(f"{path}: tar files have no splits; remove split: {split}, and name the files of one")
        return tars.opened(path)
    if saved.is_saved(path):
        return saved.opened(path, split)
    if is_table(path):
        return parquet.opened(path, split)
    if split is not None:
        raise BadInput(f"{path}: is one file without splits; remove split: {split}")
    if path.suffix == ".tsv" and not text:
        return tsv.opened(path, count)
    if path.suffix == ".xlsx" and not text:
        return xlsx.opened(path)
    return lines.opened(path, count, text)


def _of_files(source: Source, count: int | None) -> Table:
    """The files of a configuration as one table."""
    _, files = hub.fetched_files(str(source.path), str(source.config), source.split)
    kinds = {file.suffix for file in files}
    if kinds == {".parquet"}:
        return parquet.of_files(files, source.path)
    if kinds == {".tar"}:
        return tars.of_files(files, source.path)
    if kinds <= {".jsonl", ".ndjson"}:
        return json_shards.of_files(files, source.path)
    if len(files) == 1:
        return tsv.opened(files[0], count) if files[0].suffix == ".tsv" else lines.opened(files[0], count)
    what = f"{source.config} has files of {', '.join(sorted(kinds))}"
    raise BadInput(f"{source.path}: {what}; several files have to be parquet, tar or JSON lines, all of one kind")


def is_table(path: Path) -> bool:
    """Whether this is a table of Arrow or parquet: a folder, or a file by its ending."""
    return path.is_dir() or path.suffix in (".parquet", ".arrow")


def columns(table: Table, look: int = LOOK) -> tuple[str, ...]:
    """The columns that the first rows have, in their order; none where none of these can be read."""
    names: dict[str, None] = {}
    if isinstance(table, Sharded) and table.shards.streamed:
        starts = table.shard_starts
        look = min([look, *starts[starts > 0][:1].tolist()])  # no second file is fetched for it
    for index in range(min(look, len(table))):
        try:
            names |= dict.fromkeys(map(str, table.row(index).values))
        except BadRow:
            continue
    return tuple(names)


def examples(source: Source, name: str, signs: Collection[str], make: Callable[[Row], Example]) -> Rows:
    """The rows of a source in the format `name`, one of whose columns are `signs`; raises `BadInput` otherwise."""
    table, where = table_of(source, _enough(source)), called(source)
    must_be(table, where, name, signs)
    return Rows(table, chosen(source, len(table), where), make)


def chosen(source: Source, count: int, path: object) -> range:
    """The places that `skip` and `limit` leave of so many rows."""
    if source.skip >= count:
        raise BadInput(f"{path}: skip: {source.skip} leaves out all of its {count} rows; write a smaller number")
    return range(count)[source.skip : None if source.limit is None else source.skip + source.limit]


def must_be(table: Table, path: object, name: str, signs: Collection[str]) -> None:
    """Refuse a file of another kind as a whole, before every single one of its rows is found wrong."""
    names = columns(table)
    if names and not set(signs) & set(names):
        what = f"its first rows have the columns {', '.join(names)}, and none of {', '.join(signs)}"
        raise BadInput(f"{path}: is not in the {name} format: {what}")
    if not names:
        try:
            table.row(0)
        except BadRow as error:
            what = (
                f"its first row {error.what}" if len(table) == 1 else f"its first rows are broken (row 1 {error.what})"
            )
            raise BadInput(f"{path}: is not in the {name} format: {what}") from None
        raise BadInput(f"{path}: is not in the {name} format: its first rows have no columns")


def _enough(source: Source) -> int | None:
    return None if source.limit is None else source.skip + source.limit
