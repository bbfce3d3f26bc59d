"""Status: what events and processes mean, for one run and for a thousand."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from tests.conftest import SMALL

from mmlaunch.cli import group
from mmlaunch.errors import RunNotFound
from mmlaunch.load import find_run, rundir
from mmlaunch.monitor import report, status, why
from mmlaunch.monitor.state import Status
from mmlaunch.restart import attempt
from mmlaunch.run import ledger, shards
from mmlaunch.run.heartbeats import Heartbeat
from mmlaunch.run.ledger import Event, Events
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import process
from mmlaunch.submit import resume
from mmlaunch.submit.shards import fill

NOW = 1_800_000_000.0
ME = process.identity(os.getpid())
GONE = {"host": socket.gethostname(), "pid": 2**22 - 1, "began": 1}


def event(kind: str, **fields: Any) -> Event:
    return {"event": kind, "time": NOW, **fields}


def state(*events: Event) -> str:
    return status.derive(RunPaths(Path("/runs/r")), Events(events), NOW).state


SUBMITTED = event("submitted", executor="local", method="sft", steps=100)


def test_states() -> None:
    live = event("queued", **ME)
    assert state() == "unknown"
    assert state({**SUBMITTED, "time": time.time()}) == "submitted"
    assert state(SUBMITTED, live) == "submitted"
    started = event("started", attempt=1, **ME)
    assert state(SUBMITTED, live, started) == "starting"
    asked = status.derive(
        RunPaths(Path("/r")), Events((SUBMITTED, live, started, event("reference", done=3, total=9))), NOW
    )
    assert (asked.state, asked.reason) == ("starting", "asks its reference: 3 of 9 examples")
    step = event("step", step=3, steps=100, loss=0.5, rate=2.0, attempt=1)
    assert state(SUBMITTED, live, started, step) == "running"
    assert state(SUBMITTED, live, started, step, event("cancelling")) == "cancelling"
    assert state(SUBMITTED, live, started, step, event("requeued", attempt=1)) == "restarting"
    for final in ("done", "failed", "cancelled"):
        assert state(SUBMITTED, live, started, step, event("ended", state=final, attempt=1)) == final


def test_what_a_lost_run_left_in_its_logs_is_told(tmp_path: Path) -> None:
    """Where the disk was full, nothing could be written of the end."""
    run = RunPaths(tmp_path / "r")
    run.attempt(1).logs.mkdir(parents=True)
    for one in (SUBMITTED, event("queued", job="7", **GONE), event("started", attempt=1, **GONE)):
        ledger.append(run.events, **{key: value for key, value in one.items() if key != "time"})
    assert why.of(run).what == "Its job is gone and left no word"
    run.attempt(1).rank_log(0).write_text("step 3\nOSError: [Errno 28] No space left on device\n")
    story = why.of(run)
    assert (story.what, story.next) == ("Its job is gone. The disk is full", "make room, then mmlaunch resume r")
    assert story.evidence == "rank 0: OSError: [Errno 28] No space left on device [rank-0.out:2]"


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("InputChanged", "put the file back, then mmlaunch resume t; or mmlaunch submit a new task"),
        ("TooManyFailed", "mmlaunch resume t -s objective.max_failed=SHARE"),
        ("BadInput", "mmlaunch resume t    t/0 alone: "),
    ],
)
def test_what_a_task_needs_before_it_is_resumed(tmp_path: Path, kind: str, says: str) -> None:
    """A changed input, and too many failed rows, would end it again: another file, or another share."""
    run = task(tmp_path / "t")
    shard = shards.shard(run, 0)
    shard.attempt(1).logs.mkdir(parents=True)
    shard.attempt(1).script.write_text("")
    attempt.begin(shard, shard.attempt(1).script)
    shard.attempt(1).rank_error(0).write_text(json.dumps({"rank": 0, "type": kind, "message": "m", "time": 1.0}))
    assert attempt.end(shard, 1, 94) == 94
    story = why.of(run)
    assert story.state == "failed" and says in story.next and f"rank 0: {kind}: m" in story.evidence
    if kind != "BadInput":
        assert "resume t/0" not in why.of(shard).next and says in why.of(shard).next


def test_where_too_many_rows_failed_more_may(tmp_path: Path) -> None:
    run = task(tmp_path / "t")
    ledger.append(shards.shard(run, 0).events, "records", done=4, total=4, new=4, rate=1.0, failed={"image": 1})
    ledger.append(shards.shard(run, 0).events, "ended", state="done", attempt=1, cause="done", exit_code=0)
    story = why.of(run)
    assert (story.state, story.what) == ("failed", "Complete, and too many rows failed")
    more = "mmlaunch resume t -s objective.max_failed=SHARE"
    assert story.next == f"mmlaunch results t; or let more rows fail: {more}"
    assert "; 1 of 4 rows failed (1 x image), more than" in story.evidence


def task(root: Path) -> RunPaths:
    """A task of one shard, as it was submitted."""
    run = RunPaths(root)
    run.root.mkdir()
    inputs = (shards.InputFile("rows", "rows.jsonl", 4, 7, "d"),)
    fill(run, shards.Definition(4, 16, 8, ((0, 4),), inputs), {"executor": "local", "method": "predict"}, {})
    return run


def test_a_run_that_was_resumed_stands_where_it_stood() -> None:
    saved = event("checkpoint", step=80)
    before = (SUBMITTED, event("step", step=80, steps=100, loss=0.5, attempt=1), saved, event("ended", state="failed"))
    again = (*before, event("submitted", steps=100), event("queued", **ME))
    found = status.derive(RunPaths(Path("/runs/r")), Events(again), NOW)
    assert (found.step, found.saved_step, found.state) == (80, 80, "submitted")
    resumed = (*again, event("started", attempt=2, **ME), event("resumed", step=40))
    assert status.derive(RunPaths(Path("/runs/r")), Events(resumed), NOW).step == 40


def test_a_shard_that_was_resumed_keeps_what_was_committed() -> None:
    """Its progress does not go back until it reports; one that was damaged has nothing left."""
    first = event("submitted", executor="local", method="predict", rows=300)
    before = (first, event("records", done=132, total=300, new=132, rate=9.0, failed={"image": 2}))
    lost = (*before, event("ended", state="failed"), first, event("queued", **ME), event("started", attempt=2, **ME))
    found = status.derive(RunPaths(Path("/runs/r")), Events(lost), NOW)
    assert (found.state, found.step, found.steps, found.rate) == ("starting", 132, 300, None)
    assert found.failed_rows == {"image": 2}
    ready = (*lost, event("records", done=140, total=300, new=8, rate=4.0, failed={}))
    found = status.derive(RunPaths(Path("/runs/r")), Events(ready), NOW)
    assert (found.step, found.rate, found.failed_rows) == (140, 4.0, {})
    damaged = (*before, event("ended", state="done"), first, event("queued", **ME))
    found = status.derive(RunPaths(Path("/runs/r")), Events(damaged), NOW)
    assert (found.step, found.steps, found.failed_rows) == (None, 300, {})


def test_a_process_that_is_gone_without_a_word_is_lost() -> None:
    assert state(SUBMITTED, event("queued", **GONE), event("started", attempt=1, **GONE)) == "lost"
    assert state(SUBMITTED, event("queued", **{**ME, "began": 1})) == "lost"  # the number was given to another process


def test_a_number_that_was_given_away_names_nobody() -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as sleeper:
        leader = process.identity(sleeper.pid)
        assert process.members(leader) == [sleeper.pid]
        assert process.members({**leader, "began": 1}) == []
        assert process.members({**leader, "pid": 0}) == []
        sleeper.kill()


def test_another_machines_process_is_not_guessed_at() -> None:
    assert state(SUBMITTED, event("queued", **{**GONE, "host": "elsewhere"})) == "unknown"


def test_what_a_line_says() -> None:
    steps = [
        {**event("step", step=n, steps=100, loss=1 / n, rate=9.8, attempt=2), "time": NOW - 100 + n}
        for n in (10, 20, 30)
    ]
    events = [SUBMITTED, event("started", attempt=2, **ME), {**event("checkpoint", step=20), "time": NOW - 240}, *steps]
    one = status.derive(RunPaths(Path("/runs/r")), Events(tuple(events)), NOW)
    assert (one.state, one.attempt, one.step, one.steps, one.rate) == ("running", 2, 30, 100, 9.8)
    assert one.loss == pytest.approx(1 / 30) and (one.saved_step, one.saved_seconds_ago) == (20, 240)
    assert one.next == f"ends about {time.strftime('%H:%M', time.localtime(NOW + 70))}"
    assert one.shown_state == "running, attempt 2"


def test_a_rejected_checkpoint_is_not_a_saved_one() -> None:
    events = [
        SUBMITTED,
        event("started", attempt=1, **ME),
        event("checkpoint", step=5),
        event("checkpoint", step=9, rejected="torn"),
    ]
    assert status.derive(RunPaths(Path("/r")), Events(tuple(events)), NOW).saved_step == 5


def make_run(folder: Path, name: str, age: float = 0) -> None:
    (folder / name).mkdir(parents=True)
    resolved = folder / name / "recipe.resolved.yaml"
    resolved.write_text("name: x\n")
    os.utime(resolved, (NOW - age, NOW - age))


def test_runs_are_found_by_what_people_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAUNCH_RUNS", str(tmp_path))
    for age, name in enumerate(("dpo-1121-aaaa", "dpo-1121-bbbb", "dpo-1121-bbbb-2", "sft-1120-cccc")):
        make_run(tmp_path, name, age)
    (tmp_path / "not-a-run").mkdir()
    assert [run.name for run in rundir.all_runs(tmp_path)] == [
        "dpo-1121-aaaa",
        "dpo-1121-bbbb",
        "dpo-1121-bbbb-2",
        "sft-1120-cccc",
    ]
    for typed, name in (("sft", "sft-1120-cccc"), ("dpo-1121-bbbb", "dpo-1121-bbbb"), ("cccc", "sft-1120-cccc"),
                        ("last", "dpo-1121-aaaa"), (f"{tmp_path}/sft-1120-cccc", "sft-1120-cccc")):  # fmt: skip
        assert find_run.resolve(typed).name == name
    with pytest.raises(RunNotFound, match="fits 3 runs"):
        find_run.resolve("dpo")
    for nothing in ("ppo", "", "112", "ccc"):  # a variable that is not set must not name the only run there is
        with pytest.raises(RunNotFound, match="the newest are dpo-1121-aaaa"):
            find_run.resolve(nothing)
    with pytest.raises(RunNotFound, match="not a run directory"):
        find_run.resolve(f"{tmp_path}/not-a-run")


def test_a_narrow_terminal_shows_what_comes_next(tmp_path: Path) -> None:
    make_run(tmp_path, "a-run-with-a-long-name-1121-aaaa", 0)
    ledger.append(tmp_path / "a-run-with-a-long-name-1121-aaaa" / "events.jsonl", "ended", state="done", reason="")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mmlaunch", "status"]
    environment = {**os.environ, "MMLAUNCH_RUNS": str(tmp_path), "COLUMNS": "60"}
    subprocess.run(command, stdout=theirs, stdin=theirs, env=environment, check=True)
    lines = os.read(ours, 65536).decode().splitlines()
    os.close(ours)
    os.close(theirs)
    assert len(lines) == 3 and lines[2].startswith("  next: mmlaunch export "), lines


def test_a_thousand_runs_are_read_by_their_ends(tmp_path: Path) -> None:
    """Not a timing: a long ledger costs no more reading than a short one."""
    run = RunPaths(tmp_path / "r")
    run.root.mkdir()
    lines = [
        SUBMITTED,
        *(event("step", step=n, steps=9999, loss=0.1, attempt=1) for n in range(9999)),
        event("ended", state="done"),
    ]
    run.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    one = status.of(run)
    assert (one.state, one.method, one.step) == ("done", "sft", 9998)


def beats(run: RunPaths, *ranks: tuple[float, str, bool], frozen: int | None = None) -> None:
    """Heartbeats as the watchdog writes them: seconds ago, phase, waiting."""
    folder = run.attempt(1).heartbeats
    folder.mkdir(parents=True, exist_ok=True)
    for rank, (ago, phase, waiting) in enumerate(ranks):
        alive = NOW - ago if rank == frozen else NOW - 2
        beat = {"phase": phase, "step": 41, "waiting": waiting, "time": NOW - ago, "alive": alive}
        (folder / f"rank-{rank}.json").write_text(json.dumps(beat) + "\n")


def test_a_run_that_stands_still_names_the_rank(tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "r")
    steps = [{**event("step", step=n, attempt=1), "time": NOW - 300 + n} for n in range(40)]
    events = Events((SUBMITTED, event("started", attempt=1, **ME) | {"time": NOW - 400}, *steps))
    beats(run, (118, "training", True), (120, "training", False), (119, "training", True))
    one = status.derive(run, events, NOW)
    assert (one.state, one.reason) == ("running", "rank 1 has not moved for 120 s (training, step 41)")
    assert one.next == "mmlaunch why r"
    beats(run, (118, "training", True), (125, "training", True), (119, "training", True))  # stopped while it waited
    assert status.derive(run, events, NOW).reason.startswith("rank 1 has not moved for 125 s")
    beats(run, (118, "training", False), (119, "training", False), (118, "training", True), frozen=2)  # its process
    assert status.derive(run, events, NOW).reason.startswith("rank 2 has not moved for 118 s")
    beats(run, (118, "training", True), (5, "saving", False), (119, "training", True))  # slow, but alive
    assert status.derive(run, events, NOW).reason == ""
    (run.attempt(1).heartbeats / "rank-2.json").write_text('{"pha')
    assert status.derive(run, events, NOW).reason == ""


def test_slow_steps_are_not_a_standstill(tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "r")
    steps = [{**event("step", step=n, attempt=1), "time": NOW - 1000 + 300 * n} for n in range(4)]
    beats(run, (100, "training", False))
    assert status.derive(run, Events((SUBMITTED, event("started", attempt=1, **ME), *steps)), NOW).reason == ""


@pytest.mark.parametrize("lie", ["-203299848", "1e300", "9" * 400, '"three"', "null", "[]"])
def test_no_line_shows_a_number_that_cannot_be(own_home: Path, lie: str) -> None:
    make_run(own_home / "runs", "r")
    run = RunPaths(own_home / "runs" / "r")
    me = json.dumps(ME)[1:-1]
    lines = [
        f'{{"time": {lie}, "event": "submitted", "executor": "local", "steps": {lie}, "ranks": {lie}}}',
        f'{{"time": 1700000000, "event": "started", "attempt": 1, {me}}}',
        *(f'{{"time": 17000000{n}0, "event": "step", "step": {n}, "steps": 9, "rate": {lie}, "attempt": 1}}'
          for n in (1, 2, 3)),
        f'{{"time": {lie}, "event": "step", "step": {lie}, "steps": 9, "attempt": {lie}}}',
        f'{{"time": {time.time() + 1e8}, "event": "checkpoint", "step": 3, "seconds": {lie}}}',
    ]  # fmt: skip
    run.events.write_text("\n".join(lines) + "\n")
    for command in ("status", "why", "report", "runs"):
        shown = CliRunner().invoke(group, [command] if command == "runs" else [command, "r"])
        assert shown.exit_code == 0, shown.exception
        assert not re.search(r"-\d+[smhd] ago|\d{13}|three|1e\+300", shown.output), shown.output
    assert (status.of(run).step, status.of(run).steps) == (3, 9)


def test_an_end_in_some_days_has_its_day_and_an_end_in_centuries_is_not_told() -> None:
    def ends(steps: int) -> str:
        lines = [{**event("step", step=n, steps=steps, attempt=1), "time": NOW - 100 + n} for n in (10, 20)]
        return status.derive(
            RunPaths(Path("/r")), Events((SUBMITTED, event("started", attempt=1, **ME), *lines)), NOW
        ).next

    later = time.localtime(NOW + 3 * 86400)
    assert ends(20 + 3 * 86400) == f"ends about {later.tm_mday} {time.strftime('%b %H:%M', later)}"
    assert ends(10**14) == ""


def test_a_lost_run_that_is_resumed_was_not_preempted(tmp_path: Path) -> None:
    """The end that nobody could write is written by whoever submits again, with what status had shown."""
    run = RunPaths(tmp_path / "r")
    run.attempt(1).logs.mkdir(parents=True)
    run.attempt(1).script.write_text("#!/bin/bash\n")
    run.attempt(1).deepspeed.write_text("{}\n")
    ledger.append(run.events, "submitted", executor="local", steps=9)
    ledger.append(run.events, "queued", job="1", **GONE)
    ledger.append(run.events, "started", attempt=1, **GONE)
    run.attempt(1).rank_log(0).write_text("ValueError: no such row\n")
    now = status.of(run)
    assert now.state == "lost"
    resume.close_open(run, now, ledger.read(run.events))
    ledger.append(run.events, "submitted", executor="local", steps=9)
    assert attempt.begin(run, run.attempt(1).script)[0] == 2
    kinds = [one["event"] for one in ledger.read(run.events)]
    assert kinds == ["submitted", "queued", "started", "ended", "submitted", "started"]
    assert report.of(run, time.time()).attempts[0].cause == "program error"
    ledger.append(run.events, "ended", state="done")
    before = list(ledger.read(run.events))
    resume.close_open(run, status.of(run), ledger.read(run.events))
    assert list(ledger.read(run.events)) == before


def test_a_saved_step_was_done_though_it_was_not_logged(tmp_path: Path) -> None:
    """A run that is told to stop saves between two logged steps; what an earlier attempt had saved counts no more."""
    started = event("started", attempt=1, **ME)
    events: tuple[Event, ...] = (SUBMITTED, started, event("step", step=20), event("checkpoint", step=35))

    def reached(*events: Event) -> int | None:
        return status.derive(RunPaths(tmp_path), Events(events), NOW).step

    assert reached(*events, event("ended", state="cancelled")) == 35
    assert reached(*events, event("step", step=40), event("checkpoint", step=38)) == 40
    assert reached(*events, event("started", attempt=2, **ME), event("resumed", step=10)) == 10
    assert reached(SUBMITTED, started, event("checkpoint", rejected="torn")) is None
    run = RunPaths(tmp_path / "r")
    run.root.mkdir()
    for one in (*events, event("cancelling", by="ada"), event("ended", state="cancelled")):
        ledger.append(run.events, **{key: value for key, value in one.items() if key != "time"})
    assert why.of(run).what == "Cancelled by ada at step 35"


def test_the_place_of_a_quotation_is_the_log_of_the_rank_that_is_quoted(tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "r")
    paths = run.attempt(1)
    paths.logs.mkdir(parents=True)
    paths.rank_log(0).write_text("ValueError: always the same\n")
    paths.rank_log(1).write_text("step 1\n\nValueError: always the same\n")
    for quoted in ("rank 1 in step 3: ValueError: always the same", "rank-1.out: ValueError: always the same"):
        assert why.locate(run, 1, quoted) == "attempts/1/logs/rank-1.out:3"
    paths.rank_log(1).write_text("step 1\n")  # its last words came no further than its record
    assert why.locate(run, 1, "rank 1 in step 3: ValueError: always the same") == ""
    paths.rank_error(1).write_text("{}")
    assert why.locate(run, 1, "rank 1 in step 3: ValueError: always the same").endswith("rank-1.error.json:1")
    assert why.locate(run, 1, "rank 7: ValueError: always the same") == ""
    assert why.locate(run, 1, "ValueError: always the same") == "attempts/1/logs/rank-0.out:1"


def test_the_last_words_of_the_job_script_are_told(tmp_path: Path) -> None:
    """It could not have its job requeued, and was killed before it could write that down."""
    run = RunPaths(tmp_path / "run")
    run.job.mkdir(parents=True)
    ledger.append(run.events, "submitted", executor="local")
    ledger.append(run.events, "queued", job="1", host="here", pid=1 << 22, began=1, machine=process.machine())
    run.batch_log.write_text("mmlaunch: attempt 1 begins\nmmlaunch: scontrol: Unable to contact slurm controller\n\n")
    story = why.of(run)
    assert story.state == "lost" and "scontrol: Unable to contact slurm controller" in story.evidence
    assert story.place == "job/batch.out:2"


def test_a_ledger_that_is_behind_its_ranks_is_said(tmp_path: Path) -> None:
    """A full disk takes no event, but the heartbeat of a step that has gone on."""
    run = RunPaths(tmp_path / "r")
    run.root.mkdir()
    small = yaml.safe_load(SMALL)
    run.resolved.write_text(yaml.safe_dump({**small, "steps": 100, "log": {"every": 10}}))
    steps = [{**event("step", step=n, steps=100, attempt=1), "time": NOW - 300 + n} for n in (10, 20)]
    lines = (SUBMITTED, event("started", attempt=1, **ME) | {"time": NOW - 400}, *steps)

    def beat(step: int, ago: float) -> Status:
        Heartbeat("training", step, False, NOW - ago, NOW - ago, rank=0).write(run.attempt(1))
        return status.derive(run, Events(lines), NOW)

    one = beat(42, 1)
    assert (one.step, one.silent, one.next) == (41, True, "mmlaunch why r")
    assert one.reason.startswith("its ledger is behind: step 41 is done, and nothing was written for 280 s: its disk ")
    assert beat(30, 1).reason == "", "a line is due when step 30 is done, and not before"
    one = beat(42, 250)
    assert one.reason.startswith("no rank has left a sign of life for 250 s: its disk ") and one.silent


def test_a_disk_that_never_took_a_heartbeat_is_said(tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    steps = [{**event("step", step=n, steps=100, attempt=1), "time": NOW - 400 + n} for n in (10, 20)]
    events = Events((SUBMITTED, event("started", attempt=1, **ME) | {"time": NOW - 500}, *steps))
    one = status.derive(run, events, NOW)
    assert one.reason.startswith("no rank leaves a sign of life, and nothing was written for 380 s: its disk ")
    assert one.silent and one.next == f"mmlaunch why {run.name}", "and not when it ends"


def test_why_does_not_speak_of_a_hang_where_nothing_can_be_written(tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "r")
    run.root.mkdir()
    run.resolved.write_text(SMALL.replace("steps: 4", "steps: 100"))
    then = time.time() - 500
    lines = [SUBMITTED, event("started", attempt=1, **ME), *(event("step", step=n, steps=100) for n in range(9))]
    run.events.write_text("".join(json.dumps({**line, "time": then}) + "\n" for line in lines))
    Heartbeat("training", 60, False, time.time(), time.time(), rank=0).write(run.attempt(1))
    story = why.of(run)
    assert story.what == "Nothing ended it: it is running, but nothing of it is written any more"
    assert "hang" not in story.next and story.next.startswith(f"see to the disk of {run.root}")


def test_a_save_that_was_rejected_later_is_not_the_newest_one() -> None:
    first, second = event("checkpoint", step=40) | {"time": NOW - 90}, event("checkpoint", step=60)
    events = (
        SUBMITTED,
        event("started", attempt=1, **ME),
        first,
        second,
        event("checkpoint", rejected="step-60: torn"),
    )
    one = status.derive(RunPaths(Path("/r")), Events((*events, event("resumed", step=40))), NOW)
    assert (one.saved_step, one.saved_seconds_ago) == (40, 90.0)
