"""The records of a shard: JSON lines that are committed batch by batch, and can be gone on with after any kill.

A batch is appended and flushed to the disk; then a line in the file of commits says where its records end, and the hash
of all records up to there. Whatever stands behind the last commit is cut off when the shard is opened again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmlaunch.errors import BadInput
from mmlaunch.run import shards
from mmlaunch.run.files import publish
from mmlaunch.run.paths import RunPaths

Record = dict[str, Any]


class RecordFile:
    """The records of one shard. One process writes it."""

    def __init__(self, shard: RunPaths) -> None:
        self._shard, self._path, self._commits = shard, shards.records(shard), shards.commits(shard)
        self.done: set[int] = set()
        """The batches that are committed."""
        self.rows = 0
        self.failed: Counter[str] = Counter()
        """How many rows failed, by reason."""
        self._hash, self._size = hashlib.sha256(), 0
        self._indices: set[int] = set()
        self._recover()

    def append(self, batches: Mapping[int, Sequence[Record]], seconds: float) -> None:
        """Commit the records of some batches; they are on the disk when this returns."""
        records = [record for number in sorted(batches) for record in batches[number]]
        self._check_new(records)
        data = b"".join(line(record) for record in records)
        _append(self._path, data)
        self._hash.update(data)
        self._size += len(data)
        self.rows += len(records)
        self.failed.update(record["error"]["reason"] for record in records if record.get("error"))
        self.done.update(batches)
        commit = {
            "batches": sorted(batches), "rows": self.rows, "end": self._size, "sha256": self._hash.hexdigest(),
            "failed": dict(self.failed), "seconds": round(seconds, 3),
        }  # fmt: skip
        _append(self._commits, json.dumps(commit).encode() + b"\n")

    def _check_new(self, records: Sequence[Record]) -> None:
        """Refuse a second record of a row: batches are cut otherwise where a row failed in one attempt alone."""
        if again := self._indices.intersection(record["index"] for record in records):
            what = f"row {min(again)} has a record already: it, or a row near it, could be read in one attempt alone"
            raise BadInput(f"{what} (an image that came or went?); {self._anew}")
        self._indices.update(record["index"] for record in records)

    @property
    def _anew(self) -> str:
        return f"delete {self._shard.root}/records.jsonl and commits.jsonl to begin anew"

    def close(self, facts: Mapping[str, Any]) -> None:
        """Write the footer: the shard is whole. One without rows has a file without records."""
        self._path.touch()
        counts = {"rows": self.rows, "bytes": self._size, "sha256": self._hash.hexdigest()}
        footer = {**counts, "failed": dict(self.failed), **facts}
        publish(shards.footer(self._shard), json.dumps(footer, indent=1) + "\n")

    def _recover(self) -> None:
        """Go on behind the last commit; raises `BadInput` where records were changed."""
        last = None
        for commit in _whole_lines(self._commits):
            last = commit
            self.done.update(commit["batches"])
        end = last["end"] if last else 0
        if self._path.exists():
            with self._path.open("r+b") as file:
                left = end
                while left and (piece := file.read(min(left, 1 << 22))):
                    self._hash.update(piece)
                    left -= len(piece)
                if left or (last and self._hash.hexdigest() != last["sha256"]):
                    what = f"{self._path}: its records are not those that were committed"
                    raise BadInput(f"{what}; {self._anew}")
                file.truncate(end)
                os.fsync(file.fileno())
                file.seek(0)
                self._indices.update(json.loads(record)["index"] for record in file)
        elif last:
            raise BadInput(f"{self._path} is gone, and {self._commits.name} is there; put it back or delete both")
        if last:
            self.rows, self._size = last["rows"], end
            self.failed = Counter(last["failed"])


def line(record: Record) -> bytes:
    """A record as it is written; equal records have equal bytes."""
    return json.dumps(plain(record), ensure_ascii=False, allow_nan=False).encode(errors="surrogatepass") + b"\n"


def plain(value: Any) -> Any:
    """A value as JSON has it: bytes are named by their hash, numbers that are none by a word."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return {"sha256": hashlib.sha256(value).hexdigest(), "size": len(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's
        return plain(value.tolist())
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _append(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The commits that were written as a whole, one by one; a torn one at the end is cut off."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as lines:
        for one in lines:
            if not one.endswith(b"\n"):
                os.truncate(path, end)
                return
            try:
                yield json.loads(one)
            except ValueError as error:
                what = f"{path}: is damaged ({error})"
                raise BadInput(f"{what}; delete it and the records beside it to begin anew") from None
            end += len(one)
