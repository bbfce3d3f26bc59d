"""The report: what each attempt did, what it lost, and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmlaunch.monitor import report
from mmlaunch.run import ledger
from mmlaunch.run.paths import RunPaths


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
