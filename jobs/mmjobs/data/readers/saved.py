"""Tables of Arrow, mapped to memory: parquet files, folders of them, and what Hugging Face's `save_to_disk` wrote."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmjobs.data.example import BadRow, Origin
from mmjobs.data.readers.row import Row
from mmlaunch.errors import BadInput

SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?")
"""`train-00000-of-00002`, as data sets name the files of a split."""


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
            raise BadRow(origin, f"cannot be read from the table: {_reason(error)}") from None
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


def is_table(path: Path) -> bool:
    """Whether this is for `datasets` to read: a folder, or a file by its ending."""
    return path.is_dir() or path.suffix in (".parquet", ".arrow")


def opened(path: Path, split: str | None) -> Saved:
    """The table at `path`, which exists; raises `BadInput`."""
    with _library() as datasets:
        try:
            table = _read(datasets, path, split)
        except (OSError, ValueError, TypeError, LookupError, datasets.exceptions.DatasetsError) as error:
            cause = error.__cause__ or error
            raise BadInput(f"{path}: cannot be read as a table: {_reason(cause)}; is the file complete?") from None
    if not len(table):
        raise BadInput(f"{path}: holds no rows; it needs at least one")
    return Saved(str(path), table.with_format("arrow"))


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
        _only_split(path, split)
        if path.suffix == ".arrow":
            return datasets.Dataset.from_file(str(path))
        return datasets.Dataset.from_parquet(str(path))
    if (path / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(str(path))
        return saved[_chosen(path, sorted(saved), split)]
    if (path / "state.json").is_file():
        saved = datasets.load_from_disk(str(path))
        name = str(saved.split or "")
        if split not in (None, name):
            raise BadInput(f"{path}: has no split {split}; it is " + (f"the split {name}" if name else "one without"))
        return saved
    shards = _shards(path)
    if not shards:
        what = "a folder without parquet files, and not one that save_to_disk wrote"
        raise BadInput(f"{path}: is {what}; {_listing(path)}")
    return datasets.Dataset.from_parquet([str(shard) for shard in shards[_chosen(path, sorted(shards), split)]])


def _shards(folder: Path) -> dict[str, list[Path]]:
    """The parquet files of each split: by their names, or by the folders they are in."""
    shards: dict[str, list[Path]] = {}
    for shard in sorted(folder.rglob("*.parquet")):
        named = SHARD.fullmatch(shard.stem)
        above = shard.parent.name if shard.parent != folder and shard.parent.name != "data" else ""
        known = shard.stem if shard.stem in ("train", "test", "validation", "val", "eval") else "train"
        shards.setdefault(named[1] if named else above or known, []).append(shard)
    return shards


def _chosen(path: Path, splits: list[str], split: str | None) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None:
        raise BadInput(f"{path}: has the splits {', '.join(splits)}; choose one: split: {splits[-1]}")
    if split not in splits:
        raise BadInput(f"{path}: has no split {split}; it has {', '.join(splits)}")
    return split


def _only_split(path: Path, split: str | None) -> None:
    """One file is of one split, which its name may tell."""
    named = SHARD.fullmatch(path.stem)
    if split not in (None, named[1] if named else path.stem):
        raise BadInput(f"{path}: is one file without splits; remove split: {split}, or name the folder")


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return f"it holds {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else "it is empty"


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
