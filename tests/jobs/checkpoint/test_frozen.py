"""What no step changes is kept once in a run: checkpoints hold what is trained, and are read as if they held all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mmjobs.model import frozen_weights
from mmlaunch.recipe import Recipe
from mmlaunch.run import manifest
from mmlaunch.run.paths import CheckpointPaths, RunPaths

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
LORA: dict[str, Any] = {
    "model__train": {"vision": "frozen", "projector": "full", "language": "lora"},
    "model__lora": {"rank": 4, "alpha": 8},
    "checkpoint": {"every": "2 steps", "keep": 9},
}


def store(run: Any) -> Path:
    (path,) = (run.paths.root / "frozen").glob("*.safetensors")
    return Path(path)


def own_names(run: Any, step: int) -> set[str]:
    """What a checkpoint itself holds of the model."""
    weights = CheckpointPaths(run.paths.checkpoint(step)).engine("model") / "model.safetensors"
    return frozen_weights.names_in(frozen_weights.files(weights))


@pytest.mark.parametrize("stage", [*(pytest.param(stage, marks=pytest.mark.nightly) for stage in (0, 1, 2)), 3])
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
    files = [path.stat().st_size for path in broken.paths.checkpoint(6).rglob("model*.safetensors")]
    assert len(files) == (2 if stage == 3 else 1) and max(files) < 0.7 * sum(files) + (stage < 3) * sum(files), files
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


@pytest.mark.parametrize("how", ["a bit", pytest.param("gone", marks=pytest.mark.nightly)])
def test_what_is_lost_is_written_again(job: Jobs, tiny: Recipes, how: str) -> None:
    run = job("run")
    assert run.run(tiny(**LORA, steps=2)) == [0], run.log()
    name = store(run).name
    damaged(store(run), how)
    assert run.run(tiny(**LORA, steps=3)) == [0], run.log()
    assert "is written again from the model that the run began with" in run.log() and store(run).name == name


@pytest.mark.nightly  # half a minute
def test_what_is_lost_does_not_come_from_another_model(job: Jobs, tiny: Recipes) -> None:
    first, other = job("first"), job("other")
    assert first.run(tiny(steps=2)) == [0] and other.run(tiny(steps=2, seed=5)) == [0]
    run, begun = job("run"), str(first.paths.checkpoint(2))
    changes = {**LORA, "model__init_from": begun}
    assert run.run(tiny(**changes, steps=2)) == [0], run.log()
    damaged(store(run), "gone")
    file = CheckpointPaths(first.paths.checkpoint(2)).engine("model") / "model.safetensors"
    file.write_bytes((other.paths.checkpoint(2) / "model" / "model.safetensors").read_bytes())
    store(first).with_name(store(other).name).write_bytes(store(other).read_bytes())
    pins = json.loads(run.paths.pins.read_text())
    run.paths.pins.write_text(json.dumps({name: value for name, value in pins.items() if name != "model.init_from"}))
    (first.paths.checkpoint(2) / "MANIFEST.json").unlink()
    assert run.run(tiny(**changes, steps=4)) == [94]
    says = ("has other frozen weights than step-2", begun, "put one of the two back")
    assert all(text in run.log() for text in says), run.log()


def test_what_nobody_has_changed_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size, its time and its inode are those of the file that was hashed; export hashes it again."""
    run, hashed, plain = RunPaths(tmp_path), list[str](), frozen_weights.digest

    def counted(weights: dict[str, torch.Tensor]) -> str:
        hashed.append(plain(weights))
        return hashed[-1]

    monkeypatch.setattr(frozen_weights, "digest", counted)
    name = frozen_weights.keep(run, {"weight": torch.arange(5.0)})
    file = run.checkpoint(1) / "model" / "model.safetensors"
    file.parent.mkdir(parents=True)
    safetensors.torch.save_file({"own": torch.zeros(2)}, file, metadata=frozen_weights.metadata(name))
    assert frozen_weights.damage(file) is None
    hashed.clear()
    assert frozen_weights.damage(file) is None and not hashed
    assert frozen_weights.damage(file, fully=True) is None and hashed
    path = run.frozen_weights(name)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "is damaged" in (frozen_weights.damage(file) or "")


def test_a_checkpoint_is_read_inside_its_run(job: Jobs, tiny: Recipes) -> None:
    run, following = job("run"), job("following")
    assert run.run(tiny(**LORA, steps=2)) == [0]
    begun = tiny(steps=2, model__init_from=str(run.paths.checkpoint(2)))
    damaged(store(run), "gone")
    assert following.run(begun) == [94] and "is not there; start from another checkpoint" in following.log()


def test_a_weight_that_a_checkpoint_lacks_is_said(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    assert run.run(tiny(**LORA, steps=2)) == [0]
    folder = manifest.staging(run.paths.checkpoints, 2)
    run.paths.checkpoint(2).rename(folder)
    (folder / manifest.NAME).unlink()
    file = folder / "model" / "model.safetensors"
    name = frozen_weights.named_by(file)
    weights = {key: value.clone() for key, value in safetensors.torch.load_file(file).items()}
    lost = next(key for key in weights if "lora_A" in key)
    del weights[lost]
    file.unlink()
    safetensors.torch.save_file(weights, file, metadata=frozen_weights.metadata(name))
    manifest.seal(folder, run.paths.checkpoint(2), 2, 1)
    assert run.run(tiny(**LORA, steps=4)) == [94] and f"lacks {lost}" in run.log()


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(
    job: Jobs, tiny: Recipes, mount: Callable[[Path, str], None]
) -> None:
    run = job("run")
    run.paths.frozen.mkdir()
    mount(run.paths.frozen, "size=40k")
    changes = {**LORA, "checkpoint": {"every": "2 steps"}}
    assert run.run(tiny(**changes, steps=5)) == [93], run.log()
    assert [event["step"] for event in run.events("step")] == [1, 2, 3, 4, 5], "the end alone needs a checkpoint"
    assert "no checkpoint of step 2" in run.log() and "Traceback" not in run.log()
    assert not list(run.paths.frozen.iterdir())


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    weights = {"a": torch.arange(6).reshape(2, 3).T, "b": torch.tensor(1.5, dtype=torch.bfloat16)}
    run = RunPaths(tmp_path)
    name = frozen_weights.digest(weights)
    left = run.frozen / f".{name}.safetensors.writing"
    left.mkdir(parents=True)
    (left / ".tmpAbCdEf").write_bytes(b"half")
    contiguous = {key: value.contiguous() for key, value in weights.items()}
    assert frozen_weights.keep(run, contiguous) == name == frozen_weights.digest(contiguous)
    assert [path.name for path in run.frozen.iterdir()] == [f"{name}.safetensors"]
