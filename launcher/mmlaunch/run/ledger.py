"""The event ledger: a file of JSON lines that is only appended to, and can be read after a kill at any byte.

`event_types` declares the kinds of events. `compaction` moves most steps of a long run into compressed files beside the
ledger between two attempts; a line "compacted" stands in their place, and `read` puts them back.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mmlaunch.run import event_types
from mmlaunch.run.event_types import SYNCED, Kind

Event = dict[str, Any]

EARLIEST = 1_500_000_000.0
"""In 2017: no event is older."""
AHEAD = 300.0
"""Seconds by which the clock of another machine may be ahead of ours."""


@dataclass(frozen=True)
class Events:
    """The events of a ledger, and how many of its lines could not be read, or not be believed as they are."""

    events: tuple[Event, ...]
    torn: int = 0

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def last(self, *kinds: Kind) -> Event | None:
        """The newest event of one of these kinds."""
        return next((event for event in reversed(self.events) if event["event"] in kinds), None)

    @property
    def of_this_submission(self) -> Events:
        """The events since the run was last submitted. A resumed run starts with fresh restart budgets."""
        starts = [index for index, event in enumerate(self.events) if event["event"] == "submitted"]
        return Events(self.events[starts[-1] :] if starts else self.events, self.torn)

    def all(self, *kinds: Kind) -> list[Event]:
        """Every event of one of these kinds, the oldest first."""
        return [event for event in self.events if event["event"] in kinds]


def kind_of(event: Event) -> Kind:
    """The kind of an event. If another version wrote it, its kind may be none of ours."""
    kind: Kind = event["event"]
    return kind


_STEP, _COMPACTED, _BEGIN = b'"event":"step"', b'"event":"compacted"', 64
"""What the line of a step, and the line in the place of some, has among its first bytes."""
MOST_LINES = 10**9
RECENT = 8
"""So many steps tell how fast a run is; `skim` reads them before every other event."""


def append(path: Path, event: Kind, **fields: Any) -> Event:
    """Append one event. The lock keeps two writers apart, on NFS as well; a failed write leaves no trace."""
    event_types.check(event, fields)
    record: Event = {"time": round(time.time(), 3), "event": event, **fields}
    line = json.dumps(record, allow_nan=False, separators=(",", ":"), default=_readable).encode() + b"\n"
    descriptor = locked(path)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # an earlier writer was killed in mid-line: leave its torn line to itself
        try:
            _write_all(descriptor, line)
            if event in SYNCED:
                os.fsync(descriptor)
        except OSError:
            with suppress(OSError):  # what matters is why it could not be written
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    return record


def locked(path: Path) -> int:
    """A descriptor of the ledger, which nobody else writes until it is closed."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was replaced by a compacted one in the meantime


def finite(value: float) -> float | str:
    """JSON has neither NaN nor infinity: they are written as words."""
    return value if value == value and abs(value) != float("inf") else str(value)


def read(path: Path) -> Events:
    """Every whole event of a ledger; a missing file is an empty ledger."""
    try:
        with path.open("rb") as file:
            return _parse(_with_compacted(file.read().split(b"\n"), path.parent), _changed(file))
    except FileNotFoundError:
        return Events(())


def length(path: Path) -> int:
    """The number of lines that a ledger has, compacted ones among them."""
    try:
        return len(_with_compacted(path.read_bytes().split(b"\n")[:-1], path.parent))
    except FileNotFoundError:
        return 0


def skim(path: Path) -> Events:
    """The same without most steps: of those that follow one another only the first and the last few, so that a run of a
    hundred thousand steps is looked at in a moment."""
    try:
        with path.open("rb") as file:
            lines, changed = file.read().split(b"\n"), _changed(file)
    except FileNotFoundError:
        return Events(())
    return _parse([lines[number] for number in skimmed(lines)], changed)


def skimmed(lines: list[bytes]) -> list[int]:
    """Where the lines are that `skim` reads."""
    others = [number for number, line in enumerate(lines) if _STEP not in line[:_BEGIN] or not line.endswith(b"}")]
    near = {number + by for number in others for by in range(-RECENT, 2)}
    return [number for number in sorted(near) if 0 <= number < len(lines)]


def read_ends(path: Path, head: int = 4096, tail: int = 32768) -> Events:
    """The beginning and the end of a ledger, for a quick look; events in between may be missing."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= head + tail:
                return _parse(file.read().split(b"\n"), _changed(file))
            first = file.read(head).split(b"\n")[:-1]
            file.seek(size - tail)
            last = file.read().split(b"\n")[1:]
            return _parse(first + last, _changed(file))
    except FileNotFoundError:
        return Events(())


class Tail:
    """Follows a growing ledger: each call of `new` returns the events that were completed since the last one.

    The first `lines` lines are left out.
    """

    def __init__(self, path: Path, lines: int = 0) -> None:
        self.path = path
        self._lines = lines
        """So many were returned or left out, compacted ones among them."""
        self._file: tuple[int, int] | None = None
        """The device and inode in which they were counted, and `_offset` where they end in it."""
        self._offset = 0

    def new(self) -> tuple[Event, ...]:
        try:
            with self.path.open("rb") as file:
                about = os.fstat(file.fileno())
                same = self._file == (about.st_dev, about.st_ino) and about.st_size >= self._offset
                file.seek(self._offset if same else 0)
                data = file.read()
        except FileNotFoundError:
            return ()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.split(b"\n")[:-1]
        if same:
            self._lines += len(lines)
        else:  # the first look, or the ledger was compacted
            every = _with_compacted(lines, self.path.parent)
            lines, self._lines = every[self._lines :], max(self._lines, len(every))
            self._file, self._offset = (about.st_dev, about.st_ino), 0
        self._offset += len(whole)
        return _parse(lines, about.st_mtime).events


def _with_compacted(lines: list[bytes], folder: Path) -> list[bytes]:
    """The lines of a ledger with those that were moved into compressed files, in their places.

    Where such a file is gone or torn, an unreadable line stands for each line that it held.
    """
    if not any(_COMPACTED in line[:_BEGIN] for line in lines):
        return lines
    moved: dict[str, Iterator[bytes]] = {}
    result: list[bytes] = []
    for line in lines:
        place = _compacted(line) if _COMPACTED in line[:_BEGIN] else None
        if place is None:
            result.append(line)
            continue
        file, count = place
        if file not in moved:
            moved[file] = _unpacked(folder / file)
        result += [next(moved[file], b"?") for _ in range(count)]
    return result


def _compacted(line: bytes) -> tuple[str, int] | None:
    """The file and the number of the lines that a line stands for."""
    try:
        event = json.loads(line)
        file, count = str(event["file"]), int(event["lines"])
    except (ValueError, KeyError, TypeError):
        return None
    return (file, count) if "/" not in file and 0 <= count < MOST_LINES else None


def _unpacked(path: Path) -> Iterator[bytes]:
    with suppress(OSError, EOFError, zlib.error), gzip.open(path, "rb") as file:
        for line in file:
            yield line.rstrip(b"\n")


def _changed(file: BinaryIO) -> float:
    return os.fstat(file.fileno()).st_mtime


def _parse(lines: list[bytes], changed: float) -> Events:
    """The events of these lines, with values and times that can be true. `changed`: when the file was last written."""
    events: list[Event] = []
    torn = 0
    for line in lines:
        if not line.strip() or _COMPACTED in line[:_BEGIN]:
            continue
        try:
            event = json.loads(line.decode(errors="surrogatepass"))
            if not isinstance(event, dict) or not isinstance(event.get("event"), str) or "time" not in event:
                raise ValueError("not an event")
            known = event_types.believed(event)
        except (ValueError, RecursionError, OverflowError):
            torn += 1
            continue
        torn += known is None or len(known) < len(event)
        events += [known] if known is not None else []
    return Events(tuple(_in_order(events, changed)), torn)


def _in_order(events: list[Event], changed: float) -> Iterator[Event]:
    """Give every event a time that can be true: clocks lie, the order of the lines does not.

    A time that no clock could show, that is still to come, or that is before the event above it, is that of the event
    above it; at the top, that of the first one below which can be believed.
    """
    now = time.time()
    latest = next((event["time"] for event in events if _can_be(event["time"], now)), min(changed, now))
    for event in events:
        if _can_be(event["time"], now) and event["time"] > latest:
            latest = event["time"]
        yield event if event["time"] == latest else {**event, "time": latest}


def _can_be(when: object, now: float) -> bool:
    return isinstance(when, (int, float)) and not isinstance(when, bool) and EARLIEST < when < now + AHEAD


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _readable(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"an event cannot hold {type(value).__name__}: {value!r}")
