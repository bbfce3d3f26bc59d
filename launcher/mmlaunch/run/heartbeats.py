"""Heartbeats: what each rank of a running attempt does, and which rank keeps the others waiting."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path

from mmlaunch.run.event_types import MOST
from mmlaunch.run.paths import AttemptPaths, RunPaths

FROZEN = 12.0
"""Seconds: a rank that lives writes its heartbeat every five."""


@dataclass(frozen=True)
class Heartbeat:
    """A rank's last sign of life."""

    phase: str
    step: int | None
    waiting: bool
    """Whether it waits for other ranks."""
    time: float
    """When the rank last made progress."""
    alive: float
    """When its process wrote this."""
    detail: str = ""
    """What of the phase it is busy with: `reads the data, 1,200 rows`."""
    node: str = ""
    pid: int = 0
    """The process of the rank, on this node."""
    rank: int = -1
    """Not written into the file: it is in the name of the file."""

    @property
    def doing(self) -> str:
        """`training, step 7`."""
        phase = f"{self.phase}: {self.detail}" if self.detail else self.phase
        return phase if self.step is None else f"{phase}, step {self.step}"

    def write(self, attempt: AttemptPaths) -> None:
        """Replace the rank's file.

        Without a flush, unlike `publish`: what is old after seconds need not survive a power cut, and a thousand ranks
        need not flush it.
        """
        path = attempt.heartbeat(self.rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = {name: value for name, value in asdict(self).items() if name != "rank"}
        temporary = path.with_name(f".{path.name}.{threading.get_ident()}.tmp")
        content = json.dumps(fields) + "\n"
        try:
            temporary.write_text(content)
            temporary.replace(path)
        except OSError:  # a full disk takes no new file, but most take new content for an old one
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            with path.open("r+") as file:
                file.write(content)
                file.truncate()


def read(path: Path) -> Heartbeat | None:
    """Read a heartbeat; None if the file is missing or damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
        fields, rank = json.loads(path.read_text()), int(path.stem.partition("-")[2])
        heartbeat = Heartbeat(
            phase=str(fields["phase"]),
            step=None if fields["step"] is None else int(fields["step"]),
            waiting=bool(fields["waiting"]),
            time=float(fields["time"]),
            alive=float(fields["alive"]),
            detail=str(fields.get("detail", "")),
            node=str(fields.get("node", "")),
            pid=int(fields.get("pid", 0)),
            rank=rank,
        )
        if isfinite(heartbeat.time) and isfinite(heartbeat.alive) and (heartbeat.step or 0) < MOST:
            return heartbeat
    return None


def newest(run: RunPaths) -> float | None:
    """When a rank of the newest attempt last gave a sign of life; None if there is no heartbeat."""
    for number in reversed(run.attempt_numbers):
        if (alive := last(run.attempt(number))) is not None:
            return alive
    return None


def last(attempt: AttemptPaths) -> float | None:
    """When a rank of an attempt last gave a sign of life."""
    return max((beat.alive for path in attempt.all_heartbeats if (beat := read(path))), default=None)


def straggler(attempt: AttemptPaths, since: float) -> Heartbeat | None:
    """The rank that keeps the others waiting, if none of them has made progress since then.

    First comes a rank whose process stands still, whatever it did last; then one that does not wait for others; then
    the one that stopped first.
    """
    heartbeats = [heartbeat for path in attempt.all_heartbeats if (heartbeat := read(path))]
    if not heartbeats or max(heartbeat.time for heartbeat in heartbeats) > since:
        return None
    newest = max(heartbeat.alive for heartbeat in heartbeats)
    return min(heartbeats, key=lambda one: (one.alive > newest - FROZEN, one.waiting, one.time))
