"""Trackio: a database on this machine (TRACKIO_DIR), which `trackio show` opens, or a Space on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmjobs.metrics.trackers.tracker import TrackedRun

PACKAGE = "trackio"
KEEPS_AFTER = 5.0
"""It writes what it has every second or so."""
HUB = "https://huggingface.co"


def open_tracker(run: TrackedRun) -> Trackio:
    """The run of this name, begun or gone on with. Without network a Space is left out, and the database stays here."""
    import trackio

    options = dict(run.options)
    if "space_id" in options and not run.reaches(HUB):
        del options["space_id"]
    arguments: dict[str, Any] = {"project": run.project, "name": run.name, "resume": "allow", "embed": False}
    return Trackio(trackio.init(**arguments | {"config": dict(run.config)} | options))


class Trackio:
    """A run of Trackio."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One row."""
        self._run.log(dict(values), step=step)

    def close(self, done: bool) -> None:
        """Write what is still in memory."""
        self._run.finish()
