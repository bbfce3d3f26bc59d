"""Tables of Arrow, mapped to memory: what Hugging Face's `save_to_disk` wrote. The library `datasets` reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmjobs.data.example import BadRow, Origin
from mmjobs.data.readers import splits
from mmjobs.data.readers.row import Row
from mmlaunch.errors import BadInput

STATES = ("dataset_dict.json", "state.json")
"""What `save_to_disk` writes beside its files."""


@dataclass(frozen=True)
class Saved:
    """The rows of a table; images stay undecoded, as {bytes, path}."""

    name: str
    data: Any
    """A `datasets.Dataset` in Arrow's own format: that decodes nothing."""

    def __len__(self) -> int:
        return len(self.data)

    def row(self, index: int) -> Row:
        origin = Origin(self.name, index)
        try:
            (values,) = self.data[index : index + 1].to_pylist()
        except (OSError, ValueError, OverflowError) as error:
            raise BadRow(origin, f"cannot be read from the table: {reason(error)}") from None
        return Row(origin, values)

    def copy(self, places: Sequence[int], path: Path) -> None:
        """Some of the rows as one parquet file, which appears when it is whole."""
        temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
        try:
            with _library():
                self.data.with_format(None).select(places).to_parquet(str(temporary))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def is_saved(path: Path) -> bool:
    """Whether this is a folder that `save_to_disk` wrote, or one of its files."""
    return path.suffix == ".arrow" or any((path / name).is_file() for name in STATES)


def opened(path: Path, split: str | None) -> Saved:
    """The table at `path`, which exists; raises `BadInput`."""
    with _library() as datasets:
        try:
            table = _read(datasets, path, split)
        except (OSError, ValueError, TypeError, LookupError, datasets.exceptions.DatasetsError) as error:
            cause = error.__cause__ or error
            raise BadInput(f"{path}: cannot be read as a table: {reason(cause)}; is the file complete?") from None
    if not len(table):
        raise BadInput(f"{path}: holds no rows; it needs at least one")
    return Saved(str(path), table.with_format("arrow"))


def cast(table: Any, schema: Any) -> Any:
    """A table with the columns of another file, as `datasets` converts them; raises `ValueError`."""
    with _library() as datasets:
        try:
            return datasets.table.table_cast(table, schema)
        except (TypeError, ValueError, LookupError) as error:
            raise ValueError(f"its columns are not those of the first file: {reason(error)}") from None


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows as one parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _library() as datasets:
        datasets.Dataset.from_list(list(rows)).to_parquet(str(path))


@contextmanager
def _library() -> Iterator[Any]:
    """The library `datasets`, without its progress bars."""
    import datasets  # type: ignore[import-untyped]  # has no types; it takes a second, and most sources do without

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield datasets
    finally:
        if shown:
            datasets.enable_progress_bars()


def _read(datasets: Any, path: Path, split: str | None) -> Any:
    if path.is_file():
        splits.check_file(path, split)
        return datasets.Dataset.from_file(str(path))
    if (path / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(str(path))
        return saved[splits.chosen(path, sorted(saved), split)]
    saved = datasets.load_from_disk(str(path))
    name = str(saved.split or "")
    if split not in (None, name):
        raise BadInput(f"{path}: has no split {split}; it is " + (f"the split {name}" if name else "one without"))
    return saved


def reason(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error) or type(error).__name__).splitlines()[0]
