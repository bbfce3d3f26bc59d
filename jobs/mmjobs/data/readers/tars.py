"""Tar files in the form of webdataset: the files of a sample stand behind each other and begin with the same name.

`000017.json` holds the columns of a row, `000017.txt` a column `text`, `000017.jpg` its image. Rows are read where they
are, in any order: nothing is unpacked. Where each sample begins is looked for once, and kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmjobs.data.example import BadRow, Origin
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.shards import Shards, local
from mmlaunch.errors import BadInput

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
COLUMNS = ("image", "images", "img_path")
"""The columns in which a row may name its own images."""


@dataclass(frozen=True)
class Tars:
    """The samples of one tar file or several."""

    shards: Shards
    begins: Any
    """For each sample the number of its file, where it begins and where it ends: [N, 3]."""

    def __len__(self) -> int:
        return len(self.begins)

    @property
    def shard_starts(self) -> Any:
        """The first sample of each file."""
        return np.searchsorted(self.begins[:, 0], np.arange(len(self.shards)))

    def row(self, index: int) -> Row:
        """The columns of a sample; raises `BadRow`."""
        number, begin, end = (int(value) for value in self.begins[index])
        origin = Origin(self.shards.name(number), index - int(np.searchsorted(self.begins[:, 0], number)))
        try:
            with self.shards.lease(number) as path, path.open("rb") as file:
                file.seek(begin)
                members = dict(_members(file.read(end - begin)))
            return Row(origin, _columns(members))
        except (OSError, tarfile.TarError, ValueError) as error:
            raise BadRow(origin, f"cannot be read from the tar file: {error}") from None


def is_tars(path: Path) -> bool:
    """Whether this is a tar file, or a folder of tar files."""
    if path.suffix == ".tar":
        return path.is_file()
    return path.is_dir() and next(path.glob("*.tar"), None) is not None


def opened(path: Path) -> Tars:
    """The samples at `path`, a tar file or a folder of them; raises `BadInput`."""
    return of_files(sorted(path.glob("*.tar")) if path.is_dir() else [path], path)


def of_files(paths: Sequence[Path], where: object) -> Tars:
    """The samples in these files, which are here."""
    return table_of(local(paths), where, map(_index, paths))


def table_of(shards: Shards, where: object, indexes: Iterable[Any]) -> Tars:
    """The samples of these files, each with its index."""
    places = [np.insert(samples, 0, number, axis=1) for number, samples in enumerate(indexes)]
    begins = np.concatenate([np.empty((0, 3), np.int64), *places])
    if not len(begins):
        raise BadInput(f"{where}: holds no samples; it needs at least one")
    return Tars(shards, begins)


def index(path: Path, name: object) -> Any:
    """Where each sample of a file begins and ends: [N, 2]; `name` is what the file is called in messages."""
    try:
        return np.array(list(_samples(path)), np.int64).reshape(-1, 2)
    except (OSError, tarfile.TarError) as error:
        raise BadInput(f"{name}: cannot be read as a tar file: {error}; is it complete?") from None


def _index(path: Path) -> Any:
    """The same for a file that is here, from the cache or from the file."""
    status = path.stat()
    state = f"{path.absolute()} {status.st_size} {status.st_mtime_ns}"
    kept = _cache() / f"{hashlib.blake2b(state.encode(), digest_size=12).hexdigest()}.npy"
    with suppress(OSError, ValueError):
        return np.load(kept)
    samples = index(path, path)
    with suppress(OSError):  # then it is looked for again
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f".{kept.name}.{os.getpid()}.npy")
        np.save(partial, samples)
        partial.replace(kept)
    return samples


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmlaunch" / "tars"


def _samples(path: Path) -> Iterator[tuple[int, int]]:
    """The bytes of each sample: of its members' headers and their content."""
    key, begin, end = "", 0, 0
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if not member.isfile():
                continue
            now = _key(member.name)[0]
            if now != key and end:
                yield begin, end
            if now != key:
                key, begin = now, member.offset
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            tar.members = []  # type: ignore[attr-defined]  # not in its stubs; it would remember every one
    if end:
        yield begin, end


def _key(name: str) -> tuple[str, str]:
    """The name of the sample and of the part: `a/000017` and `seg.png` of `a/000017.seg.png`."""
    folder, slash, last = name.rpartition("/")
    sample, _, part = last.partition(".")
    return folder + slash + sample, part.lower()


def _members(content: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        for member in tar:
            if member.isfile() and (file := tar.extractfile(member)) is not None:
                yield member.name, file.read()


def _columns(members: Mapping[str, bytes]) -> dict[str, Any]:
    """The columns of a row: those of its JSON, its texts by their endings, and its images as bytes."""
    values: dict[str, Any] = {}
    images: dict[str, dict[str, Any]] = {}
    for name, content in members.items():
        part = _key(name)[1]
        ending = part.rpartition(".")[2]
        if ending in IMAGES:
            images[name.rpartition("/")[2]] = {"bytes": content, "path": name}
        elif ending == "json":
            read = json.loads(content)
            values |= read if isinstance(read, dict) else {part.removesuffix(".json") or "json": read}
        else:
            values["text" if part == "txt" else part.removesuffix(".txt")] = content.decode()
    named = next((column for column in COLUMNS if values.get(column)), None)
    if named is not None:
        values[named] = _own(values[named], images)
    elif images:
        several = list(images.values())
        values["image" if len(several) == 1 else "images"] = several[0] if len(several) == 1 else several
    return values


def _own(value: Any, images: Mapping[str, dict[str, Any]]) -> Any:
    """An image that a row names, as the bytes that stand beside it; one that does not stand there stays a name."""
    if isinstance(value, list):
        return [_own(one, images) for one in value]
    return images.get(str(value).rpartition("/")[2], value) if isinstance(value, str) else value
