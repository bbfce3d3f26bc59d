"""Whether a time limit leaves room for a start."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmlaunch.estimate import start
from mmlaunch.load import load_recipe
from mmlaunch.load.cluster import Cluster
from mmlaunch.recipe import Recipe

RECIPES = Path(__file__).resolve().parents[3] / "recipes"


def recipe(name: str, time: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", (f"resources.time={time}",)).recipe


def test_the_weights_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8.4 billion numbers of two bytes, at a gigabyte in a second; a lead of two minutes."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    site = Cluster(executor="local")
    assert start.seconds(recipe("quickstart", "3m")) == start.QUIET
    assert start.seconds(recipe("dpo_idefics2", "3m")) == pytest.approx(start.QUIET + 17, abs=1)
    assert start.too_short(recipe("quickstart", "3m"), site) == ""
    assert "1m for a start and a step, which takes 77s or more" in start.too_short(recipe("dpo_idefics2", "3m"), site)
    assert start.too_short(recipe("dpo_idefics2", "200s"), site) == ""
    assert "no time for a step" in start.too_short(recipe("quickstart", "2m"), site)
