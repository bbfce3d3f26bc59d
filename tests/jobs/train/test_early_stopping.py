"""Early stopping: a run whose evaluations get no better saves and is done, and a killed one stops at the same step."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.kills import kill_at

from mmlaunch.errors import RecipeError
from mmlaunch.load import load_recipe
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.stop import Stop

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
SHIPPED = Path(__file__).resolve().parents[3] / "recipes" / "quickstart.yaml"


def test_it_stops_saves_and_is_done(job: Jobs, tiny: Recipes) -> None:
    """A learning rate of almost 0 makes nothing better by 1."""
    changes = {"optim__lr": 1e-9, "evaluate__every": "2 steps", "checkpoint__every": "2 steps", "steps": 40}
    recipe = tiny(**changes, stop={"metric": "eval/loss", "patience": 2, "min_delta": 1.0})
    whole, broken = job("whole"), job("broken")
    assert whole.run(recipe, 2) == [0, 0], whole.log()
    (early,) = whole.events("stopped_early")
    assert (early["step"], early["evaluations"], early["metric"]) == (6, 2, "eval/loss")
    assert max(whole.losses()) == 6 and whole.saved()[-1] == 6 and "stops early at step 6" in whole.log()
    assert [event["step"] for event in whole.events("evaluated")] == [2, 4, 6]
    broken.prepare = kill_at("mmjobs.train.trainer:Trainer._step", 6)
    assert broken.run(recipe, 2) != [0, 0]
    broken.prepare = None
    assert broken.run(recipe, 2) == [0, 0], broken.log()
    assert max(broken.losses()) == 6 and broken.events("stopped_early")[-1]["evaluations"] == 2
    patient = tiny(**changes, stop={"metric": "eval/loss", "patience": 3, "min_delta": 1.0})
    assert broken.run(patient, 2) == [0, 0], broken.log()
    assert max(broken.losses()) == 8, "a resumed run may have more patience"


def test_what_gets_better_goes_on(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    recipe = tiny(steps=6, evaluate__every="2 steps", stop={"metric": "eval/loss", "patience": 1})
    assert run.run(recipe) == [0], run.log()
    assert not run.events("stopped_early") and max(run.losses()) == 6


@pytest.mark.parametrize(
    ("stop", "values", "better"),
    [
        (Stop(metric="eval/loss"), [3.0, 2.0, 2.0, 2.5, 1.9], [True, True, False, False, True]),
        (Stop(metric="eval/accuracy"), [0.1, 0.2, 0.2, 0.1], [True, True, False, False]),
        (Stop(metric="eval/loss", min_delta=0.5), [3.0, 2.6, 2.4], [True, False, True]),
        (Stop(metric="eval/reward", better="lower"), [3.0, 2.0], [True, True]),
        (Stop(metric="eval/loss"), [float("nan"), 3.0, float("nan")], [False, True, False]),
    ],
)
def test_what_is_better(stop: Stop, values: list[float], better: list[bool]) -> None:
    best, judged = None, []
    for value in values:
        judged.append(stop.is_better(value, best))
        best = value if judged[-1] else best
    assert judged == better


@pytest.mark.parametrize(
    ("overrides", "right"),
    [
        (["stop=eval/loss", "data.eval=[]", "evaluate.every=10 steps"], "there are no evaluation data; add data.eval"),
        (["stop=eval/loss", "evaluate.every="], "add evaluate: {every: 500 steps}"),
        (["stop={metric: eval/loss, patience: 0}"], "stop.patience"),
        (["stop={monitor: eval/loss}"], "did you mean stop.metric?"),
    ],
)
def test_what_cannot_stop_anything(overrides: list[str], right: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(right)):
        load_recipe(SHIPPED, overrides)
