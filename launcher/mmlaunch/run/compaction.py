"""Compaction: most steps of a long ledger move into a compressed file beside it, between two attempts.

What stays is what `ledger.skim` reads; `ledger.read` puts the others back, line by line as they were.
"""

from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path

from mmlaunch.run import ledger
from mmlaunch.run.files import publish

LEAST = 1_000_000
"""Bytes; less than this is not worth a file of its own."""
_LEVEL = 4
"""Of gzip: half a second for 47 MB; the highest makes the file a tenth smaller."""


def compact(path: Path) -> None:
    """Move the steps that nobody looks at while a run goes on. A kill at any moment leaves a whole ledger.

    Raises OSError, for instance where the disk is full; the ledger is as it was then.
    """
    if not path.exists() or path.stat().st_size < LEAST:
        return
    descriptor = ledger.locked(path)
    try:
        about = os.fstat(descriptor)
        lines = os.pread(descriptor, about.st_size, 0).split(b"\n")
        kept = set(ledger.skimmed(lines))
        moved = [line for number, line in enumerate(lines) if number not in kept]
        if sum(map(len, moved)) < LEAST:
            return
        archive = _free_name(path)
        publish(archive, gzip.compress(b"\n".join([*moved, b""]), _LEVEL), about.st_mode & 0o777)
        publish(path, b"\n".join(_with_places(lines, kept, archive.name)), about.st_mode & 0o777)
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    finally:
        os.close(descriptor)


def _free_name(path: Path) -> Path:
    """A name that no archive of this ledger has: one that was written before a kill is never used."""
    names = (path.with_name(f"{path.stem}.steps-{number}.jsonl.gz") for number in range(1, ledger.MOST_LINES))
    return next(name for name in names if not name.exists())


def _with_places(lines: list[bytes], kept: set[int], archive: str) -> list[bytes]:
    """The lines that are kept, and one in the place of those between them."""
    result: list[bytes] = []
    gap = 0
    for number, line in enumerate(lines):
        if number not in kept:
            gap += 1
            continue
        if gap:
            place = {"time": round(time.time(), 3), "event": "compacted", "file": archive, "lines": gap}
            result.append(json.dumps(place, separators=(",", ":")).encode())
        result.append(line)
        gap = 0
    return result
