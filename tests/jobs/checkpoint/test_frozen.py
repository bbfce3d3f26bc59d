"""What no step changes is kept once in a run: checkpoints hold what is trained, and are read as if they held all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from mmlaunch.recipe import Recipe
from mmlaunch.run.paths import CheckpointPaths

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
LORA: dict[str, Any] = {
    "model__train": {"vision": "frozen", "projector": "full", "language": "lora"},
    "model__lora": {"rank": 4, "alpha": 8},
    "checkpoint": {"every": "2 steps", "keep": 9},
}


def store(run: Any) -> Path:
    (path,) = (run.paths.root / "frozen").glob("*")
    return Path(path)


def own_names(run: Any, step: int) -> set[str]:
    """What a checkpoint itself holds of the model."""
    file = CheckpointPaths(run.paths.checkpoint(step)).engine("model") / "model.safetensors"
    return set(safetensors.torch.load_file(file))


@pytest.mark.parametrize("stage", [0, pytest.param(1, marks=pytest.mark.nightly), 2, 3])
def test_a_checkpoint_holds_what_is_trained(job: Jobs, tiny: Recipes, stage: int) -> None:
    changes = {**LORA, "deepspeed": {"stage": stage}, "resources__tasks_per_node": 2}
    whole, broken = job("whole"), job("broken")
    assert whole.run(tiny(**changes, steps=6), 2) == [0, 0], whole.log()
    assert broken.run(tiny(**changes, steps=6, stop_at=4), 2) == [0, 0], broken.log()
    kept = store(broken).stat()
    assert broken.run(tiny(**changes, steps=6), 2) == [0, 0], broken.log()
    assert broken.losses() == whole.losses() and store(broken).name == store(whole).name
    assert (store(broken).stat().st_ino, store(broken).stat().st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns)
    own, frozen = own_names(broken, 6), set(safetensors.torch.load_file(store(broken)))
    assert all("lora" in name or "projector" in name for name in own) and not own & frozen
    assert any("vision" in name for name in frozen) and any("base_layer" in name for name in frozen)
    one, other = whole.weights(6), broken.weights(6)
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    if stage:  # other ranks than those that saved
        assert broken.run(tiny(**{**changes, "resources__tasks_per_node": 1}, steps=8), 1) == [0], broken.log()
        assert "goes on with 1" in broken.log()


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    if how == "a bit":
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["a bit", "gone"])
def test_what_is_lost_is_written_again_from_the_same_source_alone(job: Jobs, tiny: Recipes, how: str) -> None:
    first = job("first")
    assert first.run(tiny(steps=2)) == [0]
    run, begun = job("run"), str(first.paths.checkpoint(2))
    changes = {**LORA, "model__init_from": begun}
    assert run.run(tiny(**changes, steps=4, stop_at=2)) == [0], run.log()
    name = store(run).name
    damaged(store(run), how)
    assert run.run(tiny(**changes, steps=4)) == [0], run.log()
    assert "is written again from the model that the run began with" in run.log() and store(run).name == name
    damaged(store(run), how)
    pins = json.loads(run.paths.pins.read_text())
    other = job("other")
    assert other.run(tiny(steps=2, seed=5)) == [0]
    file = CheckpointPaths(first.paths.checkpoint(2)).engine("model") / "model.safetensors"
    file.write_bytes((other.paths.checkpoint(2) / "model" / "model.safetensors").read_bytes())
    store(first).with_name(store(other).name).write_bytes(store(other).read_bytes())
    run.paths.pins.write_text(json.dumps({name: value for name, value in pins.items() if name != "model.init_from"}))
    (first.paths.checkpoint(2) / "MANIFEST.json").unlink()
    assert run.run(tiny(**changes, steps=6)) == [94]
    assert "frozen weights of" in run.log() and begun in run.log() and "put one of the two back" in run.log()


def test_a_checkpoint_is_read_inside_its_run(job: Jobs, tiny: Recipes) -> None:
    run, following = job("run"), job("following")
    assert run.run(tiny(**LORA, steps=2)) == [0]
    begun = tiny(steps=2, model__init_from=str(run.paths.checkpoint(2)))
    damaged(store(run), "gone")
    assert following.run(begun) == [94] and "is not there; start from another checkpoint" in following.log()
