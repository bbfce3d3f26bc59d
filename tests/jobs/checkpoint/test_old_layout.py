"""Checkpoints of version 0.1: one engine without a name, in the root of the folder; they are still resumed from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from mmjobs.model import frozen_weights
from mmlaunch.recipe import Recipe
from mmlaunch.run import manifest

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]


def to_version_0_1(checkpoints: Path, step: int, world: int) -> None:
    """Rewrite a checkpoint as version 0.1 has written it."""
    final, folder = checkpoints / f"step-{step}", manifest.staging(checkpoints, step)
    final.rename(folder)
    (folder / manifest.NAME).unlink()
    weights = folder / "model" / "model.safetensors"
    whole = {name: value.clone() for name, value in frozen_weights.read(weights).items()}
    weights.unlink()
    safetensors.torch.save_file(whole, weights, metadata={"format": "pt"})
    for path in list((folder / "model").iterdir()):
        path.rename(folder / path.name)
    (folder / "model").rmdir()
    if (folder / "reference").is_dir():
        (folder / "reference" / "reference.safetensors").rename(folder / "reference.safetensors")
        (folder / "reference").rmdir()
    state = json.loads((folder / "state.json").read_text())
    source, learner, layouts = (state.pop(name) for name in ("source", "learner", "layouts"))
    state |= {"cursor": source["cursor"], "data": source["data"], "objective": learner, "layout": layouts["model"]}
    (folder / "state.json").write_text(json.dumps(state))
    manifest.seal(folder, final, step, world)


SYNCED = {"method": "dpo", "reference": "copy", "reference_sync": {"every": 3, "mix": 0.5}}


@pytest.mark.parametrize(
    ("stage", "objective"),
    [*(pytest.param(*way, marks=pytest.mark.nightly) for way in ((1, "mpo"), (2, SYNCED))), (3, "sft")],
)
def test_a_run_goes_on_from_it_bit_for_bit(job: Jobs, tiny: Recipes, stage: int, objective: Any) -> None:
    changes: dict[str, Any] = {"objective": objective, "deepspeed__stage": stage, "optim__schedule": "constant"}
    whole, broken = job("whole"), job("broken")
    assert whole.run(tiny(**changes, steps=6)) == [0], whole.log()
    assert broken.run(tiny(**changes, steps=4)) == [0], broken.log()
    to_version_0_1(broken.paths.checkpoints, 4, 1)
    assert broken.run(tiny(**changes, steps=6)) == [0], broken.log()
    assert [event["step"] for event in broken.events("resumed")] == [4]
    assert {step: losses[-1] for step, losses in broken.losses().items()} == {
        step: losses[0] for step, losses in whole.losses().items()
    }
    assert (broken.paths.checkpoint(6) / "model" / "model.safetensors").read_bytes() == (
        whole.paths.checkpoint(6) / "model" / "model.safetensors"
    ).read_bytes()
