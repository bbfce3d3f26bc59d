"""The first and the last act of a job script: attempts that open and close in the ledger."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.conftest import SMALL

from mmlaunch.errors import MmlaunchError
from mmlaunch.monitor import status
from mmlaunch.restart import attempt
from mmlaunch.restart.policy import Ending
from mmlaunch.run import ledger, manifest
from mmlaunch.run.exits import CANCELLED, IN_JOB, JobExit
from mmlaunch.run.paths import RunPaths


@contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """No file may grow beyond this one, which refuses every new line, to root as well."""
    path.write_text(path.read_text() + json.dumps({"time": 1.0, "event": "warning", "what": "x" * 4096}) + "\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    """A run directory with its first attempt's files."""
    paths = RunPaths(tmp_path / "run")
    paths.attempt(1).logs.mkdir(parents=True)
    paths.attempt(1).script.write_text("#!/bin/bash\n")
    paths.attempt(1).deepspeed.write_text("{}\n")
    ledger.append(paths.events, "submitted", executor="local")
    return paths


def kinds(run: RunPaths) -> list[str]:
    return [event["event"] for event in ledger.read(run.events)]


def test_attempts_count_up_and_keep_their_script(run: RunPaths) -> None:
    number, port = attempt.begin(run, run.attempt(1).script)
    assert number == 1 and 10_000 <= port < 32_768
    assert attempt.end(run, 1, JobExit.AGAIN) == JobExit.AGAIN
    assert attempt.begin(run, run.attempt(1).script)[0] == 2
    assert run.attempt(2).script.read_text() == "#!/bin/bash\n" and run.attempt(2).deepspeed.read_text() == "{}\n"
    assert attempt.end(run, 2, 0) == 0
    assert kinds(run) == ["submitted", "started", "requeued", "started", "ended"]


def test_an_attempt_that_was_taken_away_is_closed_by_the_next(run: RunPaths) -> None:
    attempt.begin(run, run.attempt(1).script)
    attempt.begin(run, run.attempt(1).script)
    events = ledger.read(run.events).all("requeued")
    assert [(event["attempt"], event["cause"]) for event in events] == [(1, "preempted")]


def test_a_run_that_is_taken_away_again_and_again_ends(run: RunPaths) -> None:
    for _ in range(4):  # the first, and three restarts
        attempt.begin(run, run.attempt(1).script)
    with pytest.raises(MmlaunchError, match="no new checkpoint"):
        attempt.begin(run, run.attempt(1).script)
    assert kinds(run)[-1] == "ended"
    assert status.of(run).state == "failed"


def test_an_unfit_node_is_left_out_for_a_day(run: RunPaths) -> None:
    attempt.begin(run, run.attempt(1).script)
    record = {"rank": 0, "type": "UnfitNode", "message": "node gpu014: no room", "node": "gpu014", "time": 1.0}
    run.attempt(1).rank_error(0).write_text(json.dumps(record))
    assert attempt.end(run, 1, JobExit.UNFIT_NODE) == JobExit.AGAIN
    events = ledger.read(run.events)
    until = events.all("excluded")[0]["until"]
    assert attempt.excluded(events, until - 1) == ["gpu014"] and attempt.excluded(events, until + 1) == []


def test_a_script_that_can_goes_on_in_its_job(run: RunPaths) -> None:
    """A script of a user's own may not know the answer 95: then the job is requeued as ever."""
    run.resolved.write_text(f"{SMALL}restarts: {{backoff: 1s}}\n")
    attempt.begin(run, run.attempt(1).script)
    assert attempt.end(run, 1, 137, here=True) == IN_JOB
    attempt.begin(run, run.attempt(1).script)
    ledger.append(run.events, "checkpoint", step=5)
    assert attempt.end(run, 2, 137) == JobExit.AGAIN
    assert [event.get("in_job") for event in ledger.read(run.events).all("requeued")] == [True, None]


def test_no_job_ends_with_the_answer_for_another_attempt(run: RunPaths) -> None:
    """Whatever a rank ends with: the script would begin again, and a shard would count as done."""
    run.resolved.write_text(f"{SMALL}restarts: {{crash: 0}}\n")
    attempt.begin(run, run.attempt(1).script)
    assert attempt.end(run, 1, IN_JOB, here=True) == JobExit.STOP
    assert attempt.end(run, 1, IN_JOB, here=True) == JobExit.STOP, "its end is written"


def test_a_job_that_is_nearly_over_is_requeued(run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAUNCH_LEAD", "120")
    monkeypatch.setenv("MMLAUNCH_DEADLINE", str(round(time.time() + 110)))
    attempt.begin(run, run.attempt(1).script)
    assert attempt.end(run, 1, 137, here=True) == JobExit.AGAIN


def test_a_cancelled_run_ends_once(run: RunPaths) -> None:
    attempt.begin(run, run.attempt(1).script)
    ledger.append(run.events, "cancelling")
    ledger.append(run.events, "ended", state="cancelled", exit_code=CANCELLED)
    assert attempt.end(run, 1, JobExit.AGAIN) == CANCELLED
    assert kinds(run).count("ended") == 1


def test_a_job_that_was_replaced_does_not_go_on(run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.append(run.events, "submitted", executor="slurm")
    for job in ("7", "8"):
        ledger.append(run.events, "queued", job=job)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(MmlaunchError, match="job 8 goes on"):
        attempt.begin(run, run.attempt(1).script)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert attempt.begin(run, run.attempt(1).script)[0] == 1


def test_a_time_limit_that_is_too_short_is_named(run: RunPaths) -> None:
    """The run is told to leave before its first step, again and again."""
    run.resolved.write_text(SMALL.replace("time: 10m", "time: 3m"))
    run.profile.write_text("{}")
    for number in (1, 2, 3, 4):
        attempt.begin(run, run.attempt(1).script)
        if number < 4:
            attempt.end(run, number, JobExit.AGAIN)
    assert attempt.end(run, 4, JobExit.AGAIN) == JobExit.STOP
    reason = (ledger.read(run.events).last("ended") or {})["reason"]
    assert "no new checkpoint" in reason
    assert reason.endswith("resources.time is too short for a start and a save: 3m with a warning 2m before the end")
    run.resolved.write_text(SMALL)
    events = ledger.read(run.events).events
    assert attempt._too_short(run, events, Ending("saved", 90)) == "", "it was preempted long before its limit"


def test_a_ledger_that_cannot_be_written_ends_no_training(run: RunPaths, capfd: pytest.CaptureFixture[str]) -> None:
    """Attempts begin, count up and end by it as well; one that saved goes on, one that did not would do so for ever."""
    script = run.attempt(1).script
    with unwritable(run.events):
        assert attempt.begin(run, script)[0] == 1
        run.attempt(1).rank_log(0).write_text("step 1\n")
        assert attempt.end(run, 1, JobExit.AGAIN) == JobExit.STOP
        time.sleep(0.01)
        folder = manifest.staging(run.checkpoints, 7)
        folder.mkdir(parents=True)
        manifest.seal(folder, run.checkpoint(7), 7, 1)
        assert attempt.end(run, 1, JobExit.AGAIN) == JobExit.AGAIN
        assert attempt.begin(run, script)[0] == 2
        assert attempt.end(run, 2, 0) == 0
    assert kinds(run) == ["submitted", "warning"]
    assert "the event started could not be written down: [Errno 27]" in capfd.readouterr().err
