"""A folder of the node that holds some of the shards of a source: as many as its limit allows.

All processes of the node share it. A file that somebody reads has a shared lock and stays; one that is fetched has an
exclusive lock, appears when it is whole, and its bytes count from the beginning. Where there is no room, the files
that were not read for the longest time go.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO

from mmlaunch.errors import BadInput, MachineError

PATIENCE = 600.0
"""Seconds to wait for room, while others read all that is there."""
_MOMENT = 0.05


def folder() -> Path:
    """Where the shards of all data sets of this user are: in TMPDIR, which a cluster profile sets with `scratch`."""
    return Path(os.environ.get("TMPDIR") or tempfile.gettempdir()) / f"mmlaunch-shards-{os.getuid()}"


@dataclass(frozen=True)
class ShardCache:
    """The shards of one source that are on this node."""

    name: str
    limit: int
    """Bytes."""

    @property
    def files(self) -> Path:
        return self._root / "files"

    @property
    def _root(self) -> Path:
        return folder() / blake2b(self.name.encode(), digest_size=8).hexdigest()

    @contextmanager
    def lease(self, file: str, size: int, fetch: Callable[[Path], Path]) -> Iterator[Path]:
        """The path of a shard, which stays until the block ends; `fetch` brings it into an empty folder."""
        path = self.files / _key(file)
        with ExitStack() as held:
            try:
                self._hold(held.enter_context(self._lock(path.name)), path, size, fetch)
            except OSError as error:
                raise MachineError(f"{self._root}: cannot hold shards, TMPDIR has to be a disk: {error}") from error
            yield path

    def _hold(self, lock: IO[str], path: Path, size: int, fetch: Callable[[Path], Path]) -> None:
        """Return once the shard is here and its lock is shared."""
        while True:
            fcntl.flock(lock, fcntl.LOCK_SH)
            with suppress(FileNotFoundError):
                os.utime(path)  # the order in which they go
                return
            fcntl.flock(lock, fcntl.LOCK_UN)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                self._fetch(path, size, fetch)

    def _fetch(self, path: Path, size: int, fetch: Callable[[Path], Path]) -> None:
        """Bring a shard here; its lock is held."""
        incoming = self._reserve(path.name, size)
        try:
            fetch(incoming).replace(path)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def _reserve(self, key: str, size: int) -> Path:
        """An empty folder for a shard of this size, once there is room for it."""
        self._make_folders()
        until, incoming = time.monotonic() + PATIENCE, self._root / "incoming" / f"{key}.{size}"
        while True:
            with (self._root / "space").open("a") as space:
                fcntl.flock(space, fcntl.LOCK_EX)
                if self._make_room(key, size):
                    shutil.rmtree(incoming, ignore_errors=True)
                    incoming.mkdir()
                    return incoming
            if time.monotonic() > until:
                what = f"all of the {self.limit:,} bytes of shards on this node are being read at once"
                raise BadInput(f"{self.name}: {what}; write a larger cache_limit, or fewer data.workers")
            time.sleep(_MOMENT)

    def _make_room(self, own: str, size: int) -> bool:
        """Whether there is room, after files have gone that nobody reads."""
        coming = 0
        for other in (self._root / "incoming").iterdir():
            key, _, bytes_of_other = other.name.rpartition(".")
            if key == own:  # who was to fetch it before was killed
                shutil.rmtree(other, ignore_errors=True)
                continue
            with self._unused(key) as unused:
                if unused:  # the same
                    shutil.rmtree(other, ignore_errors=True)
                else:
                    coming += int(bytes_of_other)
        held = sorted(
            (status.st_mtime_ns, status.st_size, path) for path in self.files.iterdir() if (status := path.stat())
        )
        room = self.limit - coming - sum(bytes_of_file for _, bytes_of_file, _ in held)
        for _, bytes_of_file, path in held:
            if room >= size:
                break
            with self._unused(path.name) as unused:
                if unused:
                    path.unlink()
                    room += bytes_of_file
        return room >= size

    @contextmanager
    def _unused(self, key: str) -> Iterator[bool]:
        """Whether nobody reads or fetches a shard; nobody begins to in the block."""
        with self._lock(key) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _lock(self, key: str) -> IO[str]:
        path = self._root / "locks" / key
        try:
            return path.open("a")
        except FileNotFoundError:  # the first shard
            self._make_folders()
            return path.open("a")

    def _make_folders(self) -> None:
        for name in ("files", "locks", "incoming"):
            (self._root / name).mkdir(parents=True, exist_ok=True, mode=0o700)


def _key(file: str) -> str:
    """The name of a shard in the cache; two folders may have files of the same name."""
    return f"{blake2b(file.encode(), digest_size=6).hexdigest()}-{Path(file).name}"
