"""`mmlaunch compare`: what it asks for before anything is loaded. What it finds: tests/jobs/test_compare.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.runs import mmlaunch

from mmlaunch.load import load_recipe
from mmlaunch.recipe.resolved import text_of
from mmlaunch.run.paths import RunPaths


@pytest.fixture
def runs(own_home: Path, small: Path) -> Path:
    """Two runs that have not saved anything, `bare` without evaluation data."""
    for name, recipe in (("early", load_recipe(small)), ("bare", load_recipe(small, ("data.eval=[]",)))):
        paths = RunPaths(own_home / "runs" / name)
        paths.root.mkdir(parents=True)
        paths.resolved.write_text(text_of(recipe.recipe))
    return own_home / "runs"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["early"], 2, "Missing argument 'RUN_B'"),
        (["early", "nowhere"], 3, "no run 'nowhere'"),
        (["bare", "early"], 2, "bare has no evaluation data; name pairs to judge with --data PATH"),
        (["early", "bare", "--images", "x"], 2, "--images is about data that are not named; add --data PATH"),
        (["early", "bare", "--data", "x", "--format", "rlaifv"], 2, "did you mean rlaif_v?"),
        (["early", "bare", "--data", "x", "--format", "llava"], 2, "add images: "),
        (["early", "bare", "--format", "shapes"], 2, "shapes never end; add limit"),
        (["early", "bare", "--batch", "0"], 2, "--batch"),
        (["early", "bare"], 2, "early has no valid checkpoint (none was ever saved); compare runs that have saved one"),
    ],
)
def test_mistakes_are_one_sentence(runs: Path, arguments: list[str], code: int, says: str) -> None:
    done = mmlaunch("compare", *arguments)
    assert (done.returncode, done.stdout) == (code, "") and says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_no_run_is_told_with_those_beside_it(runs: Path) -> None:
    done = mmlaunch("compare", "early", runs / "earlier")
    assert done.returncode == 3 and "earlier is not a run directory; the newest there are " in done.stderr
    assert "early" in done.stderr.partition("newest")[2] and "bare" in done.stderr
    elsewhere = mmlaunch("why", runs / "no" / "where")
    assert elsewhere.returncode == 3 and "is not a run directory; mmlaunch status lists yours" in elsewhere.stderr


def test_help_warns_of_scales() -> None:
    told = " ".join(mmlaunch("compare", "--help").stdout.split())
    assert "RUN_A RUN_B" in told and "their scales differ" in told and "not by their ratio" in told


def test_a_damaged_checkpoint_is_named(runs: Path) -> None:
    folder = RunPaths(runs / "early").checkpoint(3)
    folder.mkdir(parents=True)
    (folder / "MANIFEST.json").write_text(json.dumps({"format": 2}))
    done = mmlaunch("compare", "early", "early")
    assert done.returncode == 2 and "early has no valid checkpoint (step-3: MANIFEST.json is damaged" in done.stderr


def test_the_data_are_named_at_once(runs: Path) -> None:
    """Also where the two runs were evaluated on different ones; neither has a checkpoint, and none is needed for it."""
    told = mmlaunch("compare", "early", "bare").stderr
    assert "both judge" in told.splitlines()[0] and "(the data.eval of A, early)" in told.splitlines()[0]
    assert "B, bare, was evaluated on other data: none; --data PATH chooses" in told
    assert "other data" not in mmlaunch("compare", "early", "early").stderr
    told = mmlaunch("compare", "early", "bare", "--data", "x.parquet", "--format", "rlaif_v", "--limit", "1200").stderr
    assert told.splitlines()[0] == "both judge x.parquet (at most 1,200 rows) (as named)"
