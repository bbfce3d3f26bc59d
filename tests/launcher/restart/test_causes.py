"""The table of causes: whole, in order, and one place to add to."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmlaunch.monitor import why
from mmlaunch.recipe.resources import Restarts
from mmlaunch.restart import attempt, causes, policy
from mmlaunch.restart.causes import Cause
from mmlaunch.run import ledger
from mmlaunch.run.exits import JobExit
from mmlaunch.run.paths import RunPaths


def test_every_row_is_whole() -> None:
    names = [cause.name for cause in causes.TABLE]
    assert len(set(names)) == len(names)
    for evidence in ("exit_codes", "error_types", "scheduler_states"):
        said = [word for cause in causes.TABLE for word in getattr(cause, evidence)]
        assert len(set(said)) == len(said), f"{evidence}: two causes are shown by the same"
    assert {code for cause in causes.TABLE for code in cause.exit_codes} > set(JobExit)
    for cause in causes.TABLE:
        assert cause.budget in ("free", "final", *Restarts.model_fields), cause.name
        assert bool(cause.final) == (cause.budget == "final"), cause.name
        assert cause.next.format(run="r", attempt=1, stacks="s", double=2), cause.name
    for name in ("DONE", "CANCELLED", "SAVED", "TIME_LIMIT", "PREEMPTED", "HANG", "CRASH"):
        assert getattr(causes, name) in names


def test_a_new_cause_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Cause(
        "licence",
        budget="final",
        why="There was no licence",
        final="it would fail again: there is no licence",
        next="get a licence, then mmlaunch resume {run}",
        error_types=("LicenceError",),
        scheduler_states=("NO_LICENCE",),
        log_pattern=re.compile("no licence for"),
    )
    monkeypatch.setattr(causes, "TABLE", (row, *causes.TABLE))
    run = RunPaths(tmp_path / "run")
    run.attempt(1).logs.mkdir(parents=True)
    run.attempt(1).script.write_text("")
    ledger.append(run.events, "submitted", executor="local")
    attempt.begin(run, run.attempt(1).script)
    run.attempt(1).rank_log(0).write_text("error: no licence for gizmo\n")
    assert policy.classify(1, run.attempt(1), []).cause == "licence"
    record = {"rank": 0, "type": "LicenceError", "message": "gizmo", "time": 1.0}
    run.attempt(1).rank_error(0).write_text(json.dumps(record))
    assert policy.taken("NO_LICENCE", "it was taken").cause == "licence"
    assert attempt.end(run, 1, 1) == 1
    story = why.of(run)
    assert (story.what, story.next) == ("There was no licence", "get a licence, then mmlaunch resume run")
    assert story.done == "Not restarted: it would fail again: there is no licence."


def test_a_cause_of_another_version_ends_nothing_badly() -> None:
    assert causes.named("meteor").why == "It failed" and "mmlaunch logs" in causes.named("meteor").next
