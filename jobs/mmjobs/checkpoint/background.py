"""Background work: files are written on a thread of their own while the training goes on."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mmjobs.engine.checkpoint_io import Files
from mmjobs.rank.disk import is_full
from mmlaunch.run.manifest import Entry


class Background:
    """One piece of work, started at once. It calls no other rank: collectives belong to the rank's own thread."""

    def __init__(self, work: Callable[[], None], bearable: Callable[[OSError], bool] = is_full) -> None:
        self._work, self._bearable = work, bearable
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)  # a rank that fails does not wait for it
        self._thread.start()

    @property
    def going_on(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join()

    def failure(self) -> OSError | None:
        """The bearable error that ended the work, by default that of a full disk; any other error is raised here."""
        if isinstance(self._error, OSError) and self._bearable(self._error):
            return self._error
        if self._error is not None:
            raise self._error
        return None

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  a thread's end is a boundary; `failure` raises it on the rank's own
            self._error = error


def write(files: Files, folder: Path, written: dict[str, Entry]) -> None:
    """Write and flush every file, and note what its manifest says of it; then its memory is freed."""
    for path in list(files):
        content = files.pop(path)
        with _created(path) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        entry: Entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        written[path.relative_to(folder).as_posix()] = entry


def _created(path: Path) -> BinaryIO:
    """A new file; its folder is made by whoever comes first."""
    try:
        return path.open("wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
