"""Data sets of the hub whose files come when a row of them is read: `streaming: true`.

The list of files, and where the rows of each stand, are kept in the user's cache, a few bytes a row. The files
themselves are in the node's shard cache. For parquet the ends of the files tell where rows stand; tar files and files
of lines are fetched for it once, before the first attempt.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np

from mmjobs.data.readers import card, hub, json_shards, parquet, splits, tars
from mmjobs.data.readers.hub import HubData
from mmjobs.data.readers.shard_cache import ShardCache
from mmlaunch.errors import BadInput
from mmlaunch.recipe.data import Source

ENDINGS: Final[dict[str, str]] = {".parquet": "parquet", ".tar": "tar", ".jsonl": "lines", ".ndjson": "lines"}
"""The kinds of files that can be streamed."""
Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class HubShards:
    """The files of one kind that a source names, at one commit of a data set."""

    data: HubData
    kind: str
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    cache: ShardCache
    """Where the node holds some of them."""

    @property
    def limit(self) -> int:
        return self.cache.limit

    @property
    def streamed(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self.files)

    def name(self, number: int) -> str:
        return f"hf://datasets/{self.data.name}@{str(self.data.revision)[:7]}/{self.files[number]}"

    def size(self, number: int) -> int:
        return self.sizes[number]

    @contextmanager
    def lease(self, number: int) -> Iterator[Path]:
        """The file, in the cache of the node; it is fetched unless it is there."""
        file = self.files[number]

        def fetch(folder: Path) -> Path:
            return hub.download(self.data, file, folder)

        with self.cache.lease(file, self.sizes[number], fetch) as path:
            yield path

    def index(self, number: int) -> Arrays:
        """Where the rows of a file stand, as it is known or as the file tells."""
        kept = _kept(f"{self.data.name}@{self.data.revision}/{self.files[number]}", "npz")
        return _arrays(kept, lambda: self._read_index(number))

    def indexes(self) -> list[Arrays]:
        """The same of all files, from one file where it is known: there may be thousands, and hundreds of ranks."""
        kept = _kept(f"all of {self.data.name}@{self.data.revision} {self.files}", "npz")
        whole = _arrays(kept, lambda: _together(map(self.index, range(len(self)))))
        indexes: list[dict[str, Any]] = [{} for _ in self.files]
        for name, array in whole.items():
            number, _, what = name.partition(".")
            indexes[int(number)][what] = array
        return [{**indexes[0], **one} for one in indexes]

    def _read_index(self, number: int) -> Arrays:
        if self.kind == "parquet":
            try:
                with parquet.readable():
                    footer = hub.read_end(self.data, self.files[number], parquet.footer)
            except ValueError as error:
                raise BadInput(f"{self.name(number)}: cannot be read as a table: {error}") from None
            return {"rows": footer.groups, "schema": np.frombuffer(footer.schema.serialize(), np.uint8)}
        with self.lease(number) as path:
            return {"rows": tars.index(path, self.name(number)) if self.kind == "tar" else json_shards.index(path)}


def shards_of(source: Source) -> HubShards:
    """The files that a source names; raises `BadInput`. No file is fetched."""
    return _shards(str(source.path), source.config, source.split, source.cache_bytes)


@cache
def _shards(path: str, config: str | None, split: str | None, limit: int) -> HubShards:
    data = HubData.of(hub.pinned(path))
    sizes = dict(_listed(data))
    if config is not None:
        wanted = card.patterns(path, _card(data), config, split)
        sizes = {name: sizes[name] for name in card.matching(sizes, wanted)}
    kinds = {kind for name in sizes if (kind := ENDINGS.get(Path(name).suffix))}
    if len(kinds) != 1:
        what = f"has files of {' and '.join(sorted(kinds))}" if kinds else f"has none of {', '.join(ENDINGS)}"
        raise BadInput(f"{path}: {what}; streaming needs files of one kind: name a folder or file of them")
    (kind,) = kinds
    names = sorted(name for name in sizes if Path(name).suffix in ENDINGS)
    if config is None and (kind != "tar" or split is not None):
        begin = f"{data.inside}/" if data.inside and data.inside not in sizes else ""
        of_split = splits.of_files(name.removeprefix(begin) for name in names)
        names = [begin + name for name in of_split[splits.chosen(path, sorted(of_split), split)]]
    largest = max(names, key=lambda name: sizes[name])
    if sizes[largest] > limit:
        what = f"cache_limit is {limit:,} bytes, and {largest} alone has {sizes[largest]:,}"
        raise BadInput(f"{path}: {what}; write a larger one")
    cache_of_source = ShardCache(" ".join(filter(None, (data.path, config, split))), limit)
    return HubShards(data, kind, tuple(names), tuple(sizes[name] for name in names), cache_of_source)


def _listed(data: HubData) -> list[tuple[str, int]]:
    """The files of a commit with their bytes, as they are known or as the hub says."""
    kept = _kept(data.path, "json")
    with suppress(OSError, ValueError):
        return [(str(name), int(size)) for name, size in json.loads(kept.read_bytes())]
    files = hub.files(data)
    _keep(kept, json.dumps(files).encode())
    return files


def _card(data: HubData) -> Mapping[str, Any]:
    """What the card of a commit says."""
    kept = _kept(f"card of {data.name}@{data.revision}", "md")
    if kept.exists():
        return card.metadata(kept)
    with tempfile.TemporaryDirectory() as folder:
        fetched = hub.download(data, card.NAME, Path(folder))
        _keep(kept, fetched.read_bytes())
        return card.metadata(fetched)


def table_of(source: Source) -> Any:
    """The rows of a source; raises `BadInput`."""
    return _table(shards_of(source))


@cache
def _table(shards: HubShards) -> Any:
    where, indexes = shards.data.path, shards.indexes()
    if shards.kind == "parquet":
        return parquet.table_of(shards, where, map(_footer, indexes))
    kind = tars if shards.kind == "tar" else json_shards
    return kind.table_of(shards, where, (one["rows"] for one in indexes))


def _together(indexes: Iterable[Arrays]) -> Arrays:
    """Several indexes as one: `3.rows` is that of the fourth file; what is as in the first one is left out."""
    whole: dict[str, Any] = {}
    for number, index in enumerate(indexes):
        for name, array in index.items():
            first = whole.get(f"0.{name}")
            if name == "rows" or first is None or not np.array_equal(array, first):
                whole[f"{number}.{name}"] = array
    return whole


def _footer(index: Arrays) -> parquet.Footer:
    return parquet.Footer(parquet.schema_of(index["schema"].tobytes()), index["rows"])


def prepare(sources: Sequence[Source], rank: int, world: int, moved: Callable[[], None]) -> None:
    """Find out where the rows of this rank's share of the files stand; the others find it in the user's cache."""
    for shards in map(shards_of, sources):
        for number in range(rank, len(shards), world):
            shards.index(number)
            moved()


def _kept(name: str, ending: str) -> Path:
    """Where something is kept that is known of a file, and of nothing else."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmlaunch" / "hub"
    endpoint = os.environ.get("HF_ENDPOINT", "")
    return folder / f"{blake2b(f'{endpoint} {name}'.encode(), digest_size=12).hexdigest()}.{ending}"


def _arrays(kept: Path, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of a file; where there is none, those that are made now and kept."""
    with suppress(OSError, ValueError, KeyError, BadZipFile), np.load(kept) as known:
        return dict(known)
    arrays, stream = make(), io.BytesIO()
    np.savez(stream, **arrays)
    _keep(kept, stream.getvalue())
    return arrays


def _keep(path: Path, content: bytes) -> None:
    with suppress(OSError):  # then it is asked again
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        partial.write_bytes(content)
        partial.replace(path)
