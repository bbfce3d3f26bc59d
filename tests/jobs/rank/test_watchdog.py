"""A rank that hangs ends the attempt and shows where; one that is slow, or that Slurm has suspended, goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mmjobs.rank.position import Position
from mmjobs.rank.watchdog import ALLOWED, Phase, Watchdog
from mmlaunch.recipe import Recipe
from mmlaunch.restart import policy
from mmlaunch.run.error_record import first_error
from mmlaunch.run.paths import RunPaths

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
ENDLESS: dict[str, Any] = {"steps": 1_000_000, "resources__tasks_per_node": 2}


def record(run: Any, rank: int) -> Any:
    return json.loads(run.paths.attempt(run.attempt).rank_error(rank).read_text())


def test_ranks_that_wait_for_a_stopped_one_show_their_stacks_and_end(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    run.start(tiny(**ENDLESS), 2, MMLAUNCH_HANG_SECONDS="3")
    run.when(5)
    os.kill(run.ranks[1].pid, signal.SIGSTOP)
    begun = time.monotonic()
    run.ranks[0].join(20)
    assert run.ranks[0].exitcode == 92 and 3 < time.monotonic() - begun < 7, run.log()
    run.kill()
    attempt = run.paths.attempt(1)
    stacks = (attempt.stacks / "rank-0.txt").read_text()
    assert all(name in stacks for name in ("ranks.py", "trainer.py", "in _watch")), "all threads, the blocked one too"
    found = record(run, 0)
    assert found["type"] == "Hang" and found["step"] >= 5 and "ranks.py" in found["traceback"]
    assert found["message"].startswith("no progress for ") and f"in training, step {found['step']}" in found["message"]
    assert found["message"].endswith(", waiting for the other ranks; stacks: attempts/1/stacks/rank-0.txt")
    assert found["message"] in run.log()
    ending = policy.classify(92, attempt, run.events())
    assert ending.cause == "hang" and found["message"] in ending.evidence
    beats = [json.loads((attempt.root / "heartbeats" / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert beats[1]["time"] <= beats[0]["time"], "the rank that fell silent first is the one that was stopped"
    assert beats[0]["step"] == found["step"] and beats[0]["phase"] == "training" and beats[0]["waiting"]


def test_rank_whose_data_never_come_ends_before_those_that_wait_for_it(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    run.start(tiny(**ENDLESS, data__workers=1), 2, MMLAUNCH_HANG_SECONDS="2")
    run.when(3)
    (worker,) = run.children(1)
    os.kill(worker, signal.SIGSTOP)
    assert run.wait() == [1, 92], run.log(1)
    found = record(run, 1)
    assert found["type"] == "Hang" and "waiting" not in found["message"] and "loader" in found["traceback"]
    assert record(run, 0)["type"] == "PeerLost"
    first = first_error(run.paths.attempt(1))
    assert first is not None and asdict(first) == {**found, "node": ""}
    time.sleep(0.1)
    state = Path(f"/proc/{worker}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX", "nobody else would end it"


@pytest.mark.nightly  # fifteen seconds, of waiting
def test_slow_evaluation_and_suspended_job_are_no_hang(job: Jobs, tiny: Recipes) -> None:
    run, seconds = job("run"), 2.0
    recipe = tiny(steps=40, data__eval={"format": "shapes", "skip": 1000, "limit": 5000})
    run.start(recipe, 1, MMLAUNCH_HANG_SECONDS=str(seconds))
    run.when(3)
    os.kill(run.ranks[0].pid, signal.SIGSTOP)
    time.sleep(1.5 * seconds)
    os.kill(run.ranks[0].pid, signal.SIGCONT)
    assert run.wait() == [0], run.log()
    evaluation = run.events("evaluated")[-1]["time"] - run.events("step")[-1]["time"]
    assert evaluation > 1.2 * seconds, "too quick to show anything"
    attempt = run.paths.attempt(1)
    assert not attempt.stacks.exists() and not attempt.rank_errors
    assert [path.name for path in (attempt.root / "heartbeats").iterdir()] == ["rank-0.json"]


STANDS_STILL = """
import sys, time
from pathlib import Path
from mmjobs.rank import watchdog
from mmjobs.rank.position import Position
from mmlaunch.run.paths import RunPaths
watchdog.HEARTBEAT, watchdog.STOOD, watchdog.QUIET = 0.1, 1.0, 2.0
with watchdog.Watchdog(RunPaths(Path(sys.argv[1])), Position()):
    time.sleep(60)
"""


def test_a_process_that_stood_still_is_not_heard_at_once(tmp_path: Path) -> None:
    """Slurm wakes a stopped rank before it ends it: its last word has to stay the one from before."""
    process = subprocess.Popen([sys.executable, "-c", STANDS_STILL, str(tmp_path)])

    def alive() -> float:
        (beat,) = tmp_path.glob("attempts/*/heartbeats/rank-0.json")
        return float(json.loads(beat.read_text())["alive"])

    try:
        until = time.monotonic() + 30
        while not list(tmp_path.glob("attempts/*/heartbeats/rank-0.json")) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        last = alive()
        process.send_signal(signal.SIGCONT)
        time.sleep(1.0)
        assert alive() == last
        while alive() == last and time.monotonic() < until:
            time.sleep(0.05)
        assert alive() > last + 3.0, "later it is heard again"
    finally:
        process.kill()
        process.wait()


def test_allowance_of_a_step_comes_from_the_steps_before(tmp_path: Path) -> None:
    watch = Watchdog(RunPaths(tmp_path), Position())

    def allowed(phase: Phase) -> float:
        watch.enter(phase)
        return watch.pulse.allowed

    assert allowed(Phase.STEP) == ALLOWED[Phase.START], "the first one starts workers"
    watch.stepped(500.0)
    assert allowed(Phase.STEP) == ALLOWED[Phase.STEP], "and says nothing about the others"
    watch.stepped(30.0)
    watch.stepped(1.0)
    assert allowed(Phase.STEP) == 300.0
    assert allowed(Phase.SAVE) == ALLOWED[Phase.SAVE] == allowed(Phase.STEP)
    watch.stepped(700.0)
    assert allowed(Phase.STEP) == 300.0
    watch.stepped(86400.0)
    assert allowed(Phase.STEP) == 3000.0, "the job was suspended for a day"
    for _ in range(50):
        watch.stepped(0.1)
    assert allowed(Phase.STEP) == ALLOWED[Phase.STEP], "old steps are forgotten"


def test_hang_seconds_that_are_none_are_bad_input(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    assert run.run(tiny(), MMLAUNCH_HANG_SECONDS="soon") == [94]
    assert "MMLAUNCH_HANG_SECONDS: 'soon'" in record(run, 0)["message"]
