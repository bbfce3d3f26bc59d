"""Twenty random faults in a pipeline: no stage begins behind one that failed, was cancelled, or is missing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from tests.conftest import SMALL, SubmitStub
from tests.launcher.submit.test_pipeline import DIAMOND
from tests.runs import mmlaunch, until

from mmlaunch.monitor import pipeline as monitor
from mmlaunch.run import ledger, pipeline
from mmlaunch.run.paths import RunPaths
from mmlaunch.run.pipeline import Stage

FAULTS = ("kill the ranks", "cancel", "lose the checkpoints", "lose the run", "kill the job", "change the recipe")


def strike(stage: Stage, fault: str) -> None:
    """Do one harm to a stage, whatever it is doing."""
    run = stage.paths
    events = ledger.read(run.events)
    if fault == "cancel":
        mmlaunch("cancel", "--now", run.name)
    elif fault == "lose the checkpoints":
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    elif fault == "lose the run":
        mmlaunch("cancel", "--now", run.name)
        run.root.rename(run.root.with_name(f".lost-{run.name}"))
    elif fault == "change the recipe":
        text = run.resolved.read_text()
        run.resolved.chmod(0o644)
        run.resolved.write_text(text.replace("seed: 0", "seed: 7"))
    elif (queued := events.last("queued")) is not None:
        number = signal.SIGKILL if fault == "kill the job" else signal.SIGTERM
        try:
            os.killpg(int(queued["pid"]), number)
        except ProcessLookupError:
            return


def check(whole: RunPaths, harmed: str) -> None:
    """Every stage that has begun began behind the end of all that it needs."""
    definition = pipeline.read(whole)
    for stage in definition.stages:
        started = ledger.read(stage.paths.events).all("started")
        for need in stage.needs if started else ():
            other = definition.named(need)
            assert other is not None
            events = ledger.read(_found(other).events).events
            done = [event["time"] for event in events if event["event"] == "ended" and event["state"] == "done"]
            assert done and done[0] <= started[0]["time"], f"{stage.name} began behind {need} ({harmed})"


def _found(stage: Stage) -> RunPaths:
    lost = stage.paths.root.with_name(f".lost-{stage.paths.name}")
    return RunPaths(lost) if lost.exists() else stage.paths


@pytest.mark.nightly  # four minutes
@pytest.mark.usefixtures("stop_all")
@pytest.mark.parametrize("seed", range(20))
def test_a_child_never_begins_behind_a_parent_that_is_not_done(
    seed: int, tmp_path: Path, submit_stub: SubmitStub
) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "rlhf.yaml").write_text(DIAMOND)
    draw = random.Random(seed)
    whole = submit_stub(
        tmp_path / "rlhf.yaml", "-s", "shared.steps=30", "-s", "shared.restarts.crash=0", cluster="local"
    )
    stages = pipeline.read(whole).stages
    stage, fault = draw.choice(stages[:3]), FAULTS[seed % len(FAULTS)]
    time.sleep(draw.uniform(0.5, 8.0))
    strike(stage, fault)
    settled = ("done", "failed", "cancelled", "lost", "held", "unknown")
    until(lambda: monitor.of(whole).whole.state in settled, seconds=120)
    time.sleep(1.0)
    check(whole, f"{fault} of {stage.name}")
