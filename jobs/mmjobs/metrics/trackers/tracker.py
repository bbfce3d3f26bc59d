"""What a tracker is, and what it needs to know of a run."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

PATIENCE = 3.0
"""Seconds in which a server has to answer; otherwise there is no network."""


@dataclass(frozen=True)
class TrackedRun:
    """A run, as a tracker shows it."""

    name: str
    """It is the same in all attempts, and no other run has it: trackers use it as their own identifier."""
    project: str
    config: Mapping[str, Any]
    """The resolved recipe."""
    folder: Path
    """In the run directory: where a tracker that has no network keeps what it would send."""
    online: str
    """auto, always or never."""
    options: Mapping[str, Any]
    """The recipe's own, for the tracker."""

    def reaches(self, url: str, allowed: bool = True) -> bool:
        """Whether curves go to this server: as the recipe says, or, with auto, where it is `allowed` and answers."""
        if self.online != "auto":
            return self.online == "always"
        return allowed and answers(url)


class Tracker(Protocol):
    """Shows the curves of one run. It is opened by a function or a class that takes a `TrackedRun`."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One point on each curve."""

    def close(self, done: bool) -> None:
        """The attempt ends; the run is `done`, or another attempt goes on with it."""


def answers(url: str) -> bool:
    """Whether a server can be reached from here."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with closing(socket.create_connection((parts.hostname or "", port), timeout=PATIENCE)):
            return True
    except OSError:
        return False
