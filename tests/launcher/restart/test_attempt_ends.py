"""A corpus of attempt ends, each with its cause: what must not be retried is never retried."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mmlaunch.recipe.resources import Restarts
from mmlaunch.restart import causes, log_lines, policy
from mmlaunch.run import ledger
from mmlaunch.run.paths import RunPaths


@dataclass
class End:
    """One attempt, as it was left."""

    cause: str
    exit_code: int
    place: int
    logs: dict[str, list[str]] = field(default_factory=dict)


def read(path: Path) -> list[End]:
    ends: list[End] = []
    lines: list[str] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := re.fullmatch(r"=== ([\w ]+) \| (\d+)(?: \| .*)?", line):
            ends.append(End(match[1], int(match[2]), number))
        elif line.startswith("--- "):
            lines = ends[-1].logs.setdefault(line[4:], [])
        elif ends:
            lines.append(line)
    return ends


NAMES = ("attempt_ends", "more_attempt_ends", "third_attempt_ends", "fourth_attempt_ends", "fifth_attempt_ends")
CORPUS = [end for name in NAMES for end in read(Path(__file__).with_name(f"{name}.txt"))]


def ending(end: End, folder: Path) -> policy.Ending:
    run = RunPaths(folder / "run")
    attempt = run.attempt(1)
    attempt.logs.mkdir(parents=True)
    run.job.mkdir()
    for age, (name, lines) in enumerate(end.logs.items()):
        batch = name.startswith("batch")  # the log of the job script is one for all attempts
        marker = [log_lines.MARKER.format(number=1)] if batch and not any("begins" in line for line in lines) else []
        path = (run.job if batch else attempt.logs) / name
        path.write_text("\n".join([*marker, *lines]) + "\n")
        os.utime(path, (1_800_000_000 + age,) * 2)
    return policy.classify(end.exit_code, attempt, [])


@pytest.mark.parametrize("end", CORPUS, ids=lambda end: f"{end.place}-{end.cause}")
def test_an_end(end: End, tmp_path: Path) -> None:
    found = ending(end, tmp_path)
    if end.cause in ("never", "again"):
        assert policy.decide(found, [], Restarts()).again == (end.cause == "again"), found
        return
    assert found.cause == end.cause, found.evidence
    shown = re.fullmatch(r"(?:rank \d+(?: \([^)]*\))?: )?(.*) \[(\S+):(\d+)\]", found.evidence)
    if shown:  # the deciding line stands there
        line = (tmp_path / "run/attempts/1/logs" / shown[2]).read_text().splitlines()[int(shown[3]) - 1]
        assert shown[1] in line


def test_the_corpus_has_every_cause_that_logs_can_show() -> None:
    shown = {cause.name for cause in causes.TABLE if cause.log_pattern or cause.error_pattern}
    assert len(CORPUS) >= 400 and {end.cause for end in CORPUS} >= shown


def test_what_another_task_of_the_array_has_said_is_no_evidence(tmp_path: Path) -> None:
    """Points of a sweep, and shards, share a job folder: one is preempted, the other one crashes."""
    parent, point = RunPaths(tmp_path / "sweep"), RunPaths(tmp_path / "point")
    parent.job.mkdir(parents=True)
    point.attempt(1).logs.mkdir(parents=True)
    point.job.symlink_to(parent.job)
    ledger.append(point.events, "queued", job="7_0")
    begins = log_lines.MARKER.format(number=1)
    other = f"{begins}\nslurmstepd: error: *** JOB 9 ON node1 CANCELLED AT 2026-11-28T22:09:52 DUE TO JOB REQUEUE ***\n"
    (parent.job / "batch-7_1.out").write_text(other)
    (parent.job / "batch-7_0.out").write_text(f"{begins}\nsrun: error: node1: task 0: Aborted\n")
    ending = policy.classify(134, point.attempt(1), [{"event": "started", "attempt": 1, "time": 0.0}])
    assert ending.cause == "crash" and "signal 6" in ending.evidence
