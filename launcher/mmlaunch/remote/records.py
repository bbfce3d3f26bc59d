"""Which runs were submitted to another machine from here: a small file for each, in a folder beside the runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mmlaunch.errors import RunNotFound
from mmlaunch.load import rundir
from mmlaunch.remote.host import Host
from mmlaunch.run.files import explained, publish

FOLDER = ".remote"
"""Its name begins with a dot, so it is no run."""


@dataclass(frozen=True)
class Record:
    """A run on another machine."""

    run: str
    host: Host
    passed: tuple[str, ...]
    """The variables whose values come from the shell here: names only."""
    submitted: float

    @property
    def path(self) -> Path:
        """The file that records it here."""
        return rundir.runs_folder() / FOLDER / f"{self.run}.json"


def write(run: str, host: Host, passed: Sequence[str]) -> None:
    """Record a run that was submitted to a host."""
    record = Record(run, host, tuple(passed), round(time.time(), 3))
    with explained(f"{run} was submitted to {host.name}, but cannot be recorded here"):
        record.path.parent.mkdir(parents=True, exist_ok=True)
        publish(record.path, json.dumps(asdict(record), indent=1) + "\n")


def records() -> list[Record]:
    """All recorded runs, the newest first."""
    read = []
    for path in (rundir.runs_folder() / FOLDER).glob("*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # a file of something else
            read.append(_record(json.loads(path.read_text(encoding="utf-8"))))
    return sorted(read, key=lambda record: record.submitted, reverse=True)


def find(name: str) -> tuple[Record, str] | None:
    """The record of the run that a user means, and its whole name; None where a run of this machine is meant.

    A name means what it means for the runs here, which come first: `last` is the newest of both.
    """
    known = records()
    if not known or os.path.exists(name):  # noqa: PTH110  Path.exists raises for a name that is too long
        return None
    head, slash, part = name.partition("/")
    if head == "last":
        chosen = [known[0]] if known[0].submitted > _newest_here() else []
        return (chosen[0], chosen[0].run + slash + part) if chosen else None
    here = [run.name for run in rundir.all_runs(rundir.runs_folder(), pipelines=True)]
    exact = [record for record in known if record.run == head]
    fitting = exact or [record for record in known if _fits(head, record.run)]
    also = [run for run in here if run == head or (_fits(head, run) and not exact)]
    if head in here or not fitting:
        return None
    if len(fitting) + len(also) > 1:
        places = [*also, *(f"{record.run} on {record.host.name}" for record in fitting)]
        raise RunNotFound(f"{head!r} fits {len(places)} runs; write more of the name: {', '.join(places[:6])}")
    return fitting[0], fitting[0].run + slash + part


def _fits(part: str, run: str) -> bool:
    return bool(part) and (run.startswith(part) or run.endswith(f"-{part}"))


def _newest_here() -> float:
    """When the newest run of this machine was made."""
    newest = next(rundir.all_runs(rundir.runs_folder(), pipelines=True), None)
    if newest is None:
        return 0.0
    return (newest.resolved if newest.resolved.exists() else newest.pipeline).stat().st_mtime


def _record(data: Mapping[str, object]) -> Record:
    host = data["host"]
    passed, submitted = data["passed"], data["submitted"]
    if not isinstance(host, dict) or not isinstance(passed, list) or not isinstance(submitted, (int, float)):
        raise TypeError("not the record of a run")
    return Record(str(data["run"]), Host(**host), tuple(map(str, passed)), submitted)
