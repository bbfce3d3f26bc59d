"""The error record: what a rank that fails leaves for the restart policy and for the user."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmlaunch.run.exits import PEER_LOST
from mmlaunch.run.files import publish
from mmlaunch.run.paths import AttemptPaths


@dataclass(frozen=True)
class ErrorRecord:
    """Why a rank failed."""

    rank: int
    type: str
    """The class of the exception, or one of our own names: Hang, UnfitNode, PeerLost."""
    message: str
    time: float = 0.0
    step: int | None = None
    sample: str | None = None
    """The row of the data that the rank worked on: file and line."""
    traceback: str = ""
    node: str = ""
    """The node that is unfit, where that is the cause."""

    def write(self, attempt: AttemptPaths) -> None:
        """Publish it in the attempt's folder."""
        attempt.logs.mkdir(parents=True, exist_ok=True)
        fields = {name: value for name, value in asdict(self).items() if name != "node" or value}
        publish(attempt.rank_error(self.rank), json.dumps(fields, indent=1) + "\n")

    def __str__(self) -> str:
        step = f" in step {self.step}" if self.step is not None else ""
        sample = f" ({self.sample})" if self.sample else ""
        return f"rank {self.rank}{step}{sample}: {self.type}: {self.message}"


def read(path: Path) -> ErrorRecord | None:
    """Read a record; None if the file is missing or damaged."""
    with suppress(OSError, ValueError, TypeError):
        record = json.loads(path.read_text())
        return _of(record) if isinstance(record, dict) else None
    return None


def _of(record: Mapping[str, Any]) -> ErrorRecord:
    """Build a record that another version may have written: it may lack some fields and have others."""
    return ErrorRecord(
        rank=int(record.get("rank", -1)),
        type=str(record.get("type", "")),
        message=str(record.get("message", "")),
        time=float(record.get("time", 0.0)),
        step=None if record.get("step") is None else int(record["step"]),
        sample=str(record["sample"]) if record.get("sample") else None,
        traceback=str(record.get("traceback", "")),
        node=str(record.get("node", "")),
    )


def errors(attempt: AttemptPaths) -> list[ErrorRecord]:
    """All records, the oldest first. Those of ranks that only lost another rank come last."""
    records = [record for path in attempt.rank_errors if (record := read(path))]
    return sorted(records, key=lambda record: (record.type == PEER_LOST, record.time))


def first_error(attempt: AttemptPaths) -> ErrorRecord | None:
    """The record that was written first."""
    return next(iter(errors(attempt)), None)
