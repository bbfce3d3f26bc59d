"""Sweeps: which points a command line means, and their runs on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import SubmitStub
from tests.runs import mmlaunch, until

from mmlaunch.errors import MmlaunchError
from mmlaunch.load.sweep import sweep_of
from mmlaunch.monitor import pipeline as monitor
from mmlaunch.monitor import table
from mmlaunch.run import ledger, pipeline


def test_every_combination_is_a_point() -> None:
    sweep = sweep_of(["optim.lr=1e-6,5e-7", "seed=1..3", "steps=10", "optim.betas=[0.9, 0.99]"])
    assert sweep.shared == ("steps=10", "optim.betas=[0.9, 0.99]") and len(sweep.points) == 6
    assert sweep.points[0] == ("optim.lr=1e-6", "seed=1") and sweep.points[-1] == ("optim.lr=5e-7", "seed=3")
    assert [point[0] for point in sweep_of(["seed=9..1..4"]).points] == ["seed=9", "seed=5", "seed=1"]
    assert [p[0] for p in sweep_of(["a={x: 1, y: 2},'b,c'"]).points] == ["a={x: 1, y: 2}", "a='b,c'"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["seed=1"], "no value is a list"),
        (["seed=1..20000"], "more than 10,000 values"),
        (["seed=1..200", "steps=1..200"], "a sweep of 40,000 points; at most 10,000"),
        (["seed=1..3..0"], "or of none"),
        (["seed=1,2,1"], "lists a value twice"),
        (["resources.nodes=1,2"], "share their resources"),
    ],
)
def test_what_is_no_sweep(overrides: list[str], sentence: str) -> None:
    with pytest.raises(MmlaunchError, match=sentence):
        sweep_of(overrides)


@pytest.mark.usefixtures("stop_all")
def test_points_run_and_are_compared(small: Path, submit_stub: SubmitStub, own_home: Path) -> None:
    one = ["-s", "resources.tasks_per_node=1", "--sweep"]
    wrong = mmlaunch("submit", "--cluster", "local", small, "-s", "optim.lrr=1,2", *one)
    assert wrong.returncode == 2 and wrong.stderr.count("did you mean optim.lr?") == 1
    assert not (own_home / "runs").exists()
    alone = mmlaunch("submit", "--cluster", "local", small, "-s", "optim.lr=1e-3,1e-2")
    assert alone.returncode == 2 and "add --sweep for a run of each value" in alone.stderr
    whole = submit_stub(small, "-s", "optim.lr=1e-3,1e-2", *one, cluster="local")
    until(lambda: monitor.of(whole).whole.state == "done")
    points = pipeline.read(whole).stages
    assert [point.values for point in points] == [("optim.lr=1e-3",), ("optim.lr=1e-2",)]
    ledger.append(points[1].paths.events, "evaluated", step=4, metrics={"eval/loss": 0.5, "eval/accuracy": 0.75})
    ledger.append(points[0].paths.events, "evaluated", step=4, metrics={"eval/loss": 0.4, "eval/accuracy": 0.5})
    best, by_loss = table.of([whole], None), table.of([whole], "eval/loss")
    assert best.best is not None and (best.metric, best.best.name) == ("eval/accuracy", "1")
    assert by_loss.best is not None and by_loss.best.name == "0"
    shown = mmlaunch("table", whole.name).stdout
    assert "best: 1 (optim.lr=1e-2), eval/accuracy 75.0%" in shown
    assert len(json.loads(mmlaunch("table", whole.name, "--json").stdout)["rows"]) == 2
    assert mmlaunch("table", whole.name, "--csv").stdout.splitlines()[0].startswith("point,run,optim.lr,state")
    more = mmlaunch("submit", "--cluster", "local", small, "-s", "optim.lr=1e-3,1e-2,1e-1", *one, "--dry-run")
    assert "3 points, 2 done before" in more.stdout
    assert "no run has measured eval/acc" in mmlaunch("table", whole.name, "--metric", "eval/acc").stderr
