"""The state of a run as one line of `mmlaunch status`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FINAL = ("done", "failed", "cancelled")
_FORESEEABLE = 365 * 86400.0


@dataclass(frozen=True)
class Status:
    """One line of `mmlaunch status`."""

    run: str
    state: str
    """perhaps submitted, submitted, pending, held, starting, running, restarting, cancelling, lost, unknown, done,
    failed, cancelled; of stages also waiting and blocked"""
    method: str
    attempt: int
    step: int | None
    steps: int | None
    rate: float | None
    loss: float | None
    saved_step: int | None
    saved_seconds_ago: float | None
    next: str
    reason: str
    directory: str
    submitted: float | None
    torn_lines: int
    silent: bool = False
    """Whether the job lives and its ledger does not tell any more what it does."""
    stands_still: bool = False
    """Whether a rank keeps the others waiting while the run trains."""
    failed_rows: Mapping[str, int] = field(default_factory=dict)
    """Of a task that goes through rows: how many failed, by reason."""

    @property
    def final(self) -> bool:
        return self.state in FINAL

    @property
    def shown_state(self) -> str:
        """The state, with the attempt where there was more than one."""
        live = self.state in ("running", "starting", "restarting")
        return f"{self.state}, attempt {self.attempt}" if live and self.attempt > 1 else self.state

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def ends_about(now: float, left: float) -> str:
    """`ends about 14:20`; with the day where it is another one, and nothing where it is no forecast any more."""
    if left > _FORESEEABLE:
        return ""
    end, today = time.localtime(now + left), time.localtime(now)
    day = "" if end[:3] == today[:3] else time.strftime("%-d %b ", end)
    return f"ends about {day}{time.strftime('%H:%M', end)}"
