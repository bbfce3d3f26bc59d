"""The report page: what it shows of five attempts, and that nothing in it is run."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from tests.conftest import SMALL

from mmlaunch.load import load_recipe
from mmlaunch.recipe.resolved import text_of
from mmlaunch.results import charts
from mmlaunch.results.report_page import page
from mmlaunch.run import ledger
from mmlaunch.run.paths import RunPaths

EVIL = "<script>alert('x')</script>&amp;"


def five_attempts(tmp_path: Path) -> RunPaths:
    """A run whose attempts ended in four ways before it was done."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    run = RunPaths(tmp_path / "small-1128-abcd")
    run.root.mkdir()
    run.recipe.write_text(f"# {EVIL}\n{SMALL}")
    run.resolved.write_text(text_of(load_recipe(path).recipe))
    run.environment.write_text(json.dumps({"git": {"commit": "0123456789abcdef", "diff": "x"}}))
    ledger.append(run.events, "submitted", executor="local", name="small", method="sft", nodes=1, ranks=2, submission=1)
    step = 0
    for number, cause in enumerate(["preempted", "node", "saved", "crash", "done"], 1):
        ledger.append(run.events, "started", attempt=number, nodes=EVIL if number == 2 else f"node{number}")
        ledger.append(run.events, "ready", world=2, parameters={"language": 1234})
        for _ in range(4):
            step += 1
            ledger.append(run.events, "step", step=step, steps=20, loss=9.0 / step, lr=1e-3, memory=2e9, attempt=number)
        ledger.append(run.events, "checkpoint", step=step, stall=0.001)
        if cause == "done":
            samples = [{"question": EVIL, "truth": "red", "answer": "blue", "images": ["0-0.png", "../../passwd"]}]
            ledger.append(run.events, "evaluated", step=step, metrics={"eval/accuracy": 0.75}, samples=samples)
            ledger.append(run.events, "ended", attempt=number, state="done", cause="done", reason="complete")
        else:
            ledger.append(run.events, "requeued", attempt=number, cause=cause)
            step -= number == 2  # a step that is done twice
    return run


def test_five_attempts_in_one_page(tmp_path: Path) -> None:
    text = page(five_attempts(tmp_path))
    assert "<script" not in text and "&lt;script&gt;" in text and "//" not in re.sub(r"file://\S+", "", text)
    bars = re.findall(r'<i class="(\w+)"', text)
    assert bars.count("good") == 1 and bars.count("again") == 2 and bars.count("failed") == 2
    assert bars.count("waited") == 5
    for shown in ("attempt 3 on node3", "eval/accuracy", "goodput", "0123456789ab, with changes", "2.0 GB", "75.0%"):
        assert shown in text, shown
    assert text.count("<figure>") == 4 and "question" in text and "blue" in text


def test_a_curve_goes_over_all_attempts_and_has_no_more_points_than_a_screen(tmp_path: Path) -> None:
    now = time.time()
    events = [{"event": "step", "time": now, "step": step, "loss": 5.0} for step in range(1, 2001)]
    events += [{"event": "step", "time": now, "step": step, "loss": 1.0} for step in range(1500, 2001)]
    events += [{"event": "step", "time": now, "step": 2001, "loss": float("nan")}]
    (curve,) = charts.curves(events)
    points = [tuple(map(float, point.split(","))) for point in curve.line.split()]
    assert len(points) <= charts.POINTS + 1 and (curve.low, curve.high, curve.last) == ("1", "5", "1")
    assert points[0] == (0, 0) and points[-1] == (charts.WIDTH, charts.HEIGHT)
    assert charts.curves([{"event": "step", "time": now, "step": 1, "loss": "nan"}]) == []


def test_an_empty_run_has_a_page(tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "empty-1128-0000")
    run.root.mkdir()
    assert "empty-1128-0000" in page(run)
