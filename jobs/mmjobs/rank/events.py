"""The event writer: what rank 0 writes down for others to read, in the ledger of events and on standard output."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mmjobs.rank.disk import is_full
from mmlaunch.run import ledger, owner
from mmlaunch.run.event_types import Kind
from mmlaunch.run.paths import RunPaths


@dataclass(frozen=True)
class EventWriter:
    """Silent on every rank but the first."""

    paths: RunPaths
    attempt: int
    first: bool
    submission: int = 0
    """The number under which this job was submitted; 0: nobody knows, and nothing is checked."""

    def check_owner(self) -> None:
        """Raise `NotTheOwner` if the run was submitted again, and another job goes on with it."""
        if self.first:
            owner.check(self.paths, self.submission)

    def write(self, kind: Kind, **fields: Any) -> None:
        """Append an event to the ledger; a full disk costs the event, not the run."""
        if not self.first:
            return
        self.check_owner()
        try:
            ledger.append(self.paths.events, kind, attempt=self.attempt, **_finite(fields))
        except OSError as error:
            if not is_full(error):
                raise
            self.log(f"warning: no room to write the event {kind!r}: {error}")

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
