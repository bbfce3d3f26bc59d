"""The event writer: what rank 0 writes down for others to read, in the ledger of events and on standard output."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mmjobs.rank.disk import is_not_writable
from mmlaunch.run import ledger, owner
from mmlaunch.run.event_types import Kind
from mmlaunch.run.paths import RunPaths


@dataclass
class EventWriter:
    """Silent on every rank but the first."""

    paths: RunPaths
    attempt: int
    first: bool
    submission: int = 0
    """The number under which this job was submitted; 0: nobody knows, and nothing is checked."""
    _missing: int = field(default=0, init=False)
    """Events that could not be written since the last one that could."""
    _told: bool = field(default=False, init=False)

    def check_owner(self) -> None:
        """Raise `NotTheOwner` if another job, or another attempt of this one, goes on with the run."""
        if self.first:
            owner.check(self.paths, self.submission, self.attempt)

    def write(self, kind: Kind, **fields: Any) -> None:
        """Append an event to the ledger. A disk that is full, read-only or broken costs the event, not the run; the
        next one that can be written is preceded by how many are missing."""
        if not self.first:
            return
        self.check_owner()
        try:
            if self._missing:
                what = f"{self._missing} event(s) are missing before this one: the ledger could not be written"
                ledger.append(self.paths.events, "warning", attempt=self.attempt, what=what, missing=self._missing)
                self._missing = 0
            ledger.append(self.paths.events, kind, attempt=self.attempt, **_finite(fields))
        except OSError as error:
            if not is_not_writable(error):
                raise
            self._missing += 1
            if not self._told:
                self._told = True
                self.log(f"warning: the run goes on without events, since its ledger cannot be written: {error}")

    def log(self, line: str) -> None:
        """One line for whoever reads the log; the log may stand on the disk that is full."""
        if self.first:
            with suppress(OSError):
                print(line, flush=True)

    def warn(self, what: str, **fields: Any) -> None:
        """Something that the run survives and its owner should know."""
        self.write("warning", what=what, **fields)
        self.log(f"warning: {what}")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return ledger.finite(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value
