"""Heartbeats: which rank of a running attempt stopped moving."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass

from mmlaunch.run.paths import AttemptPaths

FROZEN = 12.0
"""Seconds: a rank that lives writes its heartbeat every five."""


@dataclass(frozen=True)
class Beat:
    """A rank's last sign of life."""

    rank: int
    time: float  # when it last moved
    alive: float  # when its process last said so
    waiting: bool  # for other ranks
    doing: str


def laggard(attempt: AttemptPaths, since: float) -> Beat | None:
    """The rank that keeps the others, if none has moved since then.

    One whose process stands still, whatever it did last; then one that does not wait; then the first to stop.
    """
    beats = []
    for path in attempt.heartbeats.glob("rank-*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            said, rank = json.loads(path.read_text()), int(path.stem.partition("-")[2])
            doing = said["phase"] if said["step"] is None else f"{said['phase']}, step {said['step']}"
            beats.append(Beat(rank, float(said["time"]), float(said["alive"]), bool(said["waiting"]), doing))
    if not beats or max(beat.time for beat in beats) > since:
        return None
    newest = max(beat.alive for beat in beats)
    return min(beats, key=lambda beat: (beat.alive > newest - FROZEN, beat.waiting, beat.time))
