"""Pins: every attempt begins with what the first one began with, or says what is different."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from mmjobs.tasks.export import export
from mmlaunch.recipe import Recipe
from mmlaunch.run import manifest, users

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]


@pytest.fixture
def source(job: Jobs, tiny: Recipes) -> Any:
    run = job("source")
    assert run.run(tiny(steps=2, data__eval=[])) == [0], run.log()
    return run


OBJECTIVES = {
    "precomputed": "dpo",
    "a copy": {"method": "dpo", "reference": "copy"},
    "a moving copy": {"method": "dpo", "reference": "copy", "reference_sync": {"every": 1, "mix": 0.5}},
}


@pytest.mark.parametrize("how", ["is gone", pytest.param("has changed", marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    "objective", ["a copy", *(pytest.param(one, marks=pytest.mark.nightly) for one in ("precomputed", "a moving copy"))]
)
def test_a_run_goes_on_without_its_source_and_with_the_same_reference(
    job: Jobs, tiny: Recipes, source: Any, objective: str, how: str
) -> None:
    checkpoint = source.paths.checkpoint(2)
    recipe = tiny(
        objective=OBJECTIVES[objective], model__init_from=str(checkpoint), steps=4, checkpoint__every="2 steps",
        model__train={"vision": "frozen", "projector": "full", "language": "full"}, optim__schedule="constant",
    )  # fmt: skip
    whole, broken = job("whole"), job("broken")
    assert whole.run(recipe) == [0], whole.log()
    assert broken.run(recipe.model_copy(update={"steps": 2, "epochs": None})) == [0], broken.log()
    if how == "is gone":
        shutil.rmtree(source.paths.root)
    else:
        (checkpoint / manifest.NAME).write_text((checkpoint / manifest.NAME).read_text() + " ")
    assert broken.run(recipe) == [0], broken.log()
    assert f"model.init_from: {checkpoint} {how}" in broken.log() and "goes on from its own checkpoint" in broken.log()
    assert {step: values[-1] for step, values in broken.losses().items()} == {
        step: values[-1] for step, values in whole.losses().items()
    }
    if objective == "a copy":
        shutil.rmtree(broken.paths.frozen)
        assert broken.run(recipe.model_copy(update={"steps": 6})) == [94]
        assert "and the reference model began with it; put it back as it was" in broken.log()


def test_a_new_run_needs_its_source(job: Jobs, tiny: Recipes) -> None:
    fresh = job("fresh")
    assert fresh.run(tiny(model__init_from="/nowhere/at/all", steps=1)) == [94]
    assert "model.init_from: there is no folder" in fresh.log()


def test_weights_may_change_beside_a_checkpoint_and_tokenizers_may_not(
    job: Jobs, tiny: Recipes, source: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    export(source.paths.root, folder)
    frozen = {"vision": "frozen", "projector": "full", "language": "full"}
    changes: dict[str, Any] = {"model": {"pretrained": str(folder), "train": frozen}, "data__eval": []}
    changes["optim__schedule"] = "constant"
    whole, run = job("whole"), job("run")
    assert whole.run(tiny(**changes, steps=4)) == [0], whole.log()
    assert run.run(tiny(**changes, steps=2)) == [0], run.log()
    weights = {name: value + 1 for name, value in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert run.run(tiny(**changes, steps=4)) == [0], run.log()
    assert f"model.pretrained: {folder} has changed since the run began: the run goes on" in run.log()
    assert all(one.equal(other) for one, other in zip(whole.weights(4).values(), run.weights(4).values(), strict=True))
    with (folder / "tokenizer_config.json").open("a") as file:
        file.write(" ")
    assert run.run(tiny(**changes, steps=6)) == [94]
    assert f"model.pretrained: {folder}: its content is not what this run began with" in run.log()


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
