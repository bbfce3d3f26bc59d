"""A run goes on with another number of ranks: the same global batches, the same schedule, the same losses."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mmjobs.model.toys import models as toys
from mmlaunch.recipe import Recipe
from mmlaunch.run import manifest

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
PARTS: dict[str, Any] = {  # frozen ones, and six groups; the projector's bias has no part on two of four ranks
    "model__train": {"vision": "full", "projector": "full", "language": "lora"}, "model__projector": "linear",
    "model__language": {"random": {"width": 4, "layers": 1, "heads": 2, "max_positions": 128}},
    "model__lora": {"rank": 3, "alpha": 4},
    "optim": {"lr": 3e-3, "weight_decay": 0.1, "lrs": {"projector": 5e-3, "vision": 2e-3}},
}  # fmt: skip


def goes_on(job: Jobs, recipe: Recipe, worlds: tuple[int, ...], share: float) -> None:
    """Ten steps on the first number of ranks; then steps 5 to 10 on the second, and 9 and 10 on the third."""
    whole = before = job("whole")
    assert whole.run(recipe, worlds[0]) == [0] * worlds[0], whole.log()
    expected, weights = whole.losses(), whole.weights(10)
    for world, step in zip(worlds[1:], (4, 8), strict=False):
        after = job(f"from-{step}")
        shutil.copytree(before.paths.checkpoint(step), after.paths.checkpoint(step))
        assert after.run(recipe, world) == [0] * world, after.log()
        assert after.events("resumed")[0]["step"] == step and "goes on with" in after.log()
        found = after.losses()
        assert sorted(found) == list(range(step + 1, 11))
        for number, (loss,) in found.items():
            assert loss == pytest.approx(expected[number][0], rel=share)
        for name, weight in after.weights(10).items():
            torch.testing.assert_close(weight, weights[name], rtol=share, atol=5 * share)
        left = sorted(path.name for path in after.paths.checkpoints.iterdir())
        assert left == sorted({f"step-{step}", "step-8", "step-10"}), "nothing is left of the conversion"
        before = after


@pytest.mark.parametrize(
    ("stage", "worlds"),
    [
        (3, (1, 2, 1)),
        *(pytest.param(*way, marks=pytest.mark.nightly) for way in ((0, (2, 1)), (1, (2, 1)), (2, (2, 4, 2)))),
    ],
)
def test_losses_are_those_of_the_unbroken_run(job: Jobs, tiny: Recipes, stage: int, worlds: tuple[int, ...]) -> None:
    settings = {"every": "4 steps", "keep": 9}
    goes_on(job, tiny(deepspeed__stage=stage, steps=10, checkpoint=settings, batch__micro=2, **PARTS), worlds, 1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize(("stage", "world"), [(1, 1), (2, 4), (3, 1)])
def test_fifty_steps_later_the_losses_are_still_the_same(job: Jobs, tiny: Recipes, stage: int, world: int) -> None:
    whole, after = job("whole"), job("after")
    every = {"every": "10 steps", "keep": 9}
    recipe = tiny(deepspeed__stage=stage, steps=60, checkpoint=every, batch__micro=2, data__eval=[])
    assert whole.run(recipe, 2) == [0, 0], whole.log()
    shutil.copytree(whole.paths.checkpoint(10), after.paths.checkpoint(10))
    assert after.run(recipe, world) == [0] * world, after.log()
    found, expected = after.losses(), whole.losses()
    assert sorted(found) == list(range(11, 61))
    assert [found[step][0] for step in found] == pytest.approx([expected[step][0] for step in found], rel=1e-3)


def test_tied_and_half_weights_too(job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    folder = toys.gemma(tmp_path / "gemma")
    rows = [
        {"conversations": [{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": f"{n}!"}]} for n in range(9)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    changes = {
        "model": {"pretrained": str(folder)}, "deepspeed__stage": 2, "data__eval": [], "precision": "bf16",
        "data__train": {"path": str(tmp_path / "rows.json"), "format": "llava", "images": "none"},
        "batch": {"global": 4, "tokens_per_gpu": 128}, "data__max_tokens": 64, "steps": 10,
    }  # fmt: skip
    goes_on(job, tiny(**changes, checkpoint={"every": "4 steps", "keep": 9}), (2, 1), 1e-3)


def opened(run: Any) -> Path:
    """The checkpoint of step 2, to be changed and sealed again."""
    folder = manifest.staging(run.paths.checkpoints, 2)
    run.paths.checkpoint(2).rename(folder)
    (folder / manifest.NAME).unlink()
    return folder


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_a_checkpoint_of_version_0_2_holds_what_is_not_trained_too(job: Jobs, tiny: Recipes, stage: int) -> None:
    run = job("run")
    assert run.run(tiny(deepspeed__stage=stage, steps=2, **PARTS)) == [0], run.log()
    weights = run.weights(2)
    folder = opened(run)
    (name,) = [name for name in weights if "embed_tokens" in name]
    weights[name] += 1
    safetensors.torch.save_file(weights, folder / "model" / "model.safetensors")
    manifest.seal(folder, run.paths.checkpoint(2), 2, 1)
    assert run.run(tiny(deepspeed__stage=stage, steps=3, **PARTS), 2) == [0, 0], run.log()
    assert torch.equal(run.weights(3)[name], weights[name])


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("stage", [2, 3])
def test_nothing_in_a_checkpoint_is_run(job: Jobs, tiny: Recipes, tmp_path: Path, stage: int) -> None:
    run, recipe = job("run"), tiny(deepspeed__stage=stage, steps=2)
    assert run.run(recipe) == [0], run.log()
    folder = opened(run)
    (file,) = folder.glob("model/deepspeed/*_optim_states.pt")
    torch.save({"optimizer_state_dict": Evil(tmp_path / "executed")}, file)
    manifest.seal(folder, run.paths.checkpoint(2), 2, 1)
    assert run.run(recipe, 2)[0] == 94 and "holds more than tensors, and is not loaded" in run.log()
    assert "Traceback" not in run.log()
    assert not (tmp_path / "executed").exists()


def test_full_disk_is_told_before_anything_is_converted(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    run.paths.checkpoints.mkdir()
    if os.system(f"mount -t tmpfs -o size=400k none {run.paths.checkpoints} 2>/dev/null"):
        pytest.skip("a small disk can be mounted by root only")
    try:
        assert run.run(tiny(deepspeed__stage=1, steps=2)) == [0], run.log()
        assert run.run(tiny(deepspeed__stage=1, steps=4), 2)[0] == 93, run.log()
        assert "no room to prepare step 2 for 2 ranks" in run.log() and run.saved() == [2]
    finally:
        os.system(f"umount {run.paths.checkpoints}")
