"""Pins: every attempt begins with what the first one began with, or says what is different."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from mmlaunch.recipe import Recipe
from mmlaunch.run import manifest, users

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]


@pytest.fixture
def source(job: Jobs, tiny: Recipes) -> Any:
    run = job("source")
    assert run.run(tiny(steps=2, data__eval=[])) == [0], run.log()
    return run


def test_a_run_goes_on_without_its_source_and_with_the_same_reference(job: Jobs, tiny: Recipes, source: Any) -> None:
    checkpoint = source.paths.checkpoint(2)
    recipe = tiny(objective="dpo", model__init_from=str(checkpoint), steps=4, checkpoint__every="2 steps")
    whole, broken = job("whole"), job("broken")
    assert whole.run(recipe) == [0], whole.log()
    assert broken.run(recipe.model_copy(update={"steps": 2, "epochs": None})) == [0], broken.log()
    shutil.rmtree(source.paths.root)
    again = recipe.model_copy(update={"steps": 4})
    assert broken.run(again) == [0], broken.log()
    assert "is gone: the run goes on from its own checkpoint" in broken.log()
    assert {step: values[-1] for step, values in broken.losses().items()}.keys() == whole.losses().keys()
    fresh = job("fresh")
    assert fresh.run(recipe) == [94] and "model.init_from: there is no folder" in fresh.log()


def test_a_source_that_has_changed_is_an_error(job: Jobs, tiny: Recipes, source: Any) -> None:
    checkpoint = source.paths.checkpoint(2)
    run, recipe = job("run"), tiny(model__init_from=str(checkpoint), steps=3, data__eval=[])
    assert run.run(recipe) == [0], run.log()
    (checkpoint / manifest.NAME).write_text((checkpoint / manifest.NAME).read_text() + " ")
    assert run.run(recipe) == [94]
    assert f"model.init_from: {checkpoint}: its content is not what this run began with" in run.log()


def test_a_damaged_source_is_refused(job: Jobs, tiny: Recipes, source: Any) -> None:
    checkpoint = source.paths.checkpoint(2)
    (weights,) = checkpoint.rglob("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    run = job("run")
    assert run.run(tiny(model__init_from=str(checkpoint), steps=1)) == [94]
    assert "its content is not what was saved" in run.log() and "is damaged" in run.log()


def test_a_checkpoint_is_kept_while_a_run_needs_it(job: Jobs, tiny: Recipes, source: Any) -> None:
    user = job("user")
    user.paths.resolved.write_text("name: user\n")
    users.register(user.paths, source.paths.checkpoint(2))
    recipe = tiny(steps=6, data__eval=[], checkpoint={"every": "2 steps", "keep": 1})
    assert source.run(recipe) == [0], source.log()
    assert manifest.steps(source.paths.checkpoints) == [2, 6]
