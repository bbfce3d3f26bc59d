"""Heartbeats: which rank of a running attempt stopped moving."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass

from mmlaunch.run.paths import AttemptPaths


@dataclass(frozen=True)
class Beat:
    """A rank's last sign of life."""

    time: float
    rank: int
    waiting: bool  # for other ranks
    doing: str


def laggard(attempt: AttemptPaths, since: float) -> Beat | None:
    """If no rank has moved since then: the one for which the others wait, or else the one that stopped first."""
    beats = []
    for path in attempt.heartbeats.glob("rank-*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            said, rank = json.loads(path.read_text()), int(path.stem.partition("-")[2])
            step = "" if said["step"] is None else f", step {said['step']}"
            beats.append(Beat(float(said["time"]), rank, bool(said["waiting"]), f"{said['phase']}{step}"))
    if not beats or max(beat.time for beat in beats) > since:
        return None
    return min(beats, key=lambda beat: (beat.waiting, beat.time))
