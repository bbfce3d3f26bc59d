"""The report: what each attempt did, what it lost, and what it cost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mmlaunch.cli import group
from mmlaunch.monitor import report
from mmlaunch.run import ledger
from mmlaunch.run.heartbeats import Heartbeat
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import process


def reported(folder: Path, *events: dict[str, Any]) -> report.Report:
    run = RunPaths(folder / "run")
    run.root.mkdir()
    for event in events:
        ledger.append(run.events, **event)
    return report.of(run, 0.0)


def attempt(number: int, resumed: int, logged: list[int], saved: list[int], cause: str) -> list[dict[str, Any]]:
    begun = [{"event": "resumed", "step": resumed}] if resumed else []
    steps = [{"event": "step", "step": step} for step in logged]
    saves = [{"event": "checkpoint", "step": step} for step in saved]
    end = [{"event": "requeued", "attempt": number, "cause": cause}] if cause else []
    return [{"event": "started", "attempt": number}, *begun, {"event": "ready", "world": 2}, *steps, *saves, *end]


def test_steps_are_those_that_were_done_and_not_those_that_were_logged(tmp_path: Path) -> None:
    found = reported(
        tmp_path,
        {"event": "submitted", "executor": "local", "ranks": 2},
        *attempt(1, 0, [1, 20], [31], "saved"),
        *attempt(2, 31, [40, 60], [40], "crash"),
        {"event": "submitted", "executor": "local", "ranks": 1},
        *attempt(3, 40, [60, 80], [], "hang"),
        {"event": "started", "attempt": 4},
    )
    assert [(a.first_step, a.last_step, a.lost_steps) for a in found.attempts] == [
        (1, 31, 0), (32, 60, 20), (41, 80, 0), (None, None, 0),
    ]  # fmt: skip
    assert [a.ranks for a in found.attempts] == [2, 2, 1, 1]


def test_an_attempt_that_begins_anew_has_lost_everything_before(tmp_path: Path) -> None:
    found = reported(tmp_path, *attempt(1, 0, [1, 9], [], "crash"), *attempt(2, 0, [1], [], ""))
    assert [a.lost_steps for a in found.attempts] == [9, 0]


THEN = 1_700_000_000.0


def test_a_start_up_has_its_phases(tmp_path: Path) -> None:
    phases = {"loads the libraries": 4.0, "loads the model": 1.5, "first step": 0.5, "odd": None}
    events = [
        {"event": "started", "attempt": 1, "time": THEN},
        {"event": "started_up", "step": 1, "phases": phases, "time": THEN + 8.0},
    ]
    (one,) = reported(tmp_path, *events).attempts
    assert one.startup == {
        "starts the ranks": 2.0, "loads the libraries": 4.0, "loads the model": 1.5, "first step": 0.5,
    }  # fmt: skip


def written(folder: Path, *events: tuple[float, str, dict[str, Any]], beat: float | None = None) -> RunPaths:
    """A ledger whose events came so many seconds after the first one; rank 0's last sign of life in attempt 1."""
    run = RunPaths(folder / "run")
    run.root.mkdir()
    lines = [{"time": THEN + after, "event": kind, **fields} for after, kind, fields in events]
    run.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if beat is not None:
        Heartbeat("training", 3, False, THEN + beat, THEN + beat, rank=0).write(run.attempt(1))
    return run


SUBMITTED = (0.0, "submitted", {"executor": "local", "ranks": 2})
GONE = {**process.identity(os.getpid()), "began": 1, "pid": 1 << 22}
STARTED = (10.0, "started", {"attempt": 1, **GONE})


def test_the_schedulers_own_requeue_is_waited_for_since_the_last_sign_of_life(tmp_path: Path) -> None:
    """It is written when the next attempt begins, hours later."""
    requeued = {"attempt": 1, "cause": "preempted", "by": "slurm"}
    again: list[tuple[float, str, dict[str, Any]]]
    again = [(7000.0, "requeued", requeued), (7000.0, "started", {"attempt": 2}), (7100.0, "ended", {"state": "done"})]
    run = written(tmp_path, SUBMITTED, STARTED, (50.0, "step", {"step": 3}), *again, beat=70.0)
    first, second = report.of(run, THEN + 9000).attempts
    assert (first.waited, first.lasted, second.waited) == (10.0, 60.0, 6930.0)


@pytest.mark.parametrize("by", ["nobody", "cancel", "resume"])
def test_an_attempt_that_could_not_write_its_end_lasted_until_its_last_sign_of_life(tmp_path: Path, by: str) -> None:
    """Its job was ended by hand after 35 seconds; somebody looked, cancelled or resumed after 2,500."""
    closed = {"state": "failed" if by == "resume" else "cancelled", "cause": "lost" if by == "resume" else "cancelled"}
    closed |= {"by": "resume"} if by == "resume" else {}
    after: dict[str, list[tuple[float, str, dict[str, Any]]]] = {
        "nobody": [],
        "cancel": [(2500.0, "cancelling", {}), (2501.0, "ended", closed)],
        "resume": [(2500.0, "ended", closed), (2500.0, "submitted", {"executor": "local"})],
    }
    run = written(tmp_path, SUBMITTED, STARTED, (30.0, "step", {"step": 3}), *after[by], beat=45.0)
    (only,) = report.of(run, THEN + 9000).attempts
    assert only.lasted == 35.0
    assert only.cause == {"nobody": "lost", "cancel": "cancelled", "resume": "lost"}[by]


def test_a_resume_that_was_refused_is_no_end_of_the_attempt_before(tmp_path: Path) -> None:
    done = [(60.0, "ended", {"attempt": 1, "state": "failed", "cause": "crash"}), (99.0, "submitted", {})]
    run = written(tmp_path, SUBMITTED, STARTED, *done, (100.0, "ended", {"state": "failed", "reason": "sbatch"}))
    (only,) = report.of(run, THEN + 9000).attempts
    assert (only.cause, only.lasted) == ("crash", 50.0)


@pytest.mark.parametrize("content", ["", "\0" * 99, '{"event": 3}\n[]\n', '{"time": 1, "event": "ended"}\n'])
def test_a_ledger_without_an_attempt_is_said(own_home: Path, content: str) -> None:
    run = RunPaths(own_home / "runs" / "r")
    run.root.mkdir(parents=True)
    run.resolved.write_text("name: r\n")
    run.events.write_text(content)
    shown = CliRunner().invoke(group, ["report", "r"])
    assert shown.exit_code == 0 and shown.output.endswith("no attempt has begun; next: mmlaunch status r\n")
    assert json.loads(CliRunner().invoke(group, ["report", "r", "--json"]).output)["attempts"] == []
