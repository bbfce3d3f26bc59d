"""What no step changes is kept once in a run: checkpoints hold what is trained, and are read as if they held all."""

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
from tests.jobs.kills import kill_at

from mmjobs.checkpoint.keep_frozen import keeps_base
from mmjobs.model import frozen_weights
from mmjobs.tasks.export import export
from mmlaunch.errors import BadInput
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
    (path,) = run.paths.frozen.iterdir()
    return Path(path)


def kept_files(run: Any) -> list[Path]:
    return sorted(store(run).glob("model-*.safetensors"))


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
    kept = [path.stat() for path in kept_files(broken)]
    assert broken.run(tiny(**changes, steps=6), 2) == [0, 0], broken.log()
    assert broken.losses() == whole.losses() and store(broken).name == store(whole).name
    now = [path.stat() for path in kept_files(broken)]
    assert [(one.st_ino, one.st_mtime_ns) for one in now] == [(one.st_ino, one.st_mtime_ns) for one in kept]
    assert len(now) == 2 and max(one.st_size for one in now) < 0.7 * sum(one.st_size for one in now), "each its share"
    own, frozen = own_names(broken, 6), frozen_weights.names_in(kept_files(broken))
    assert all("lora" in name or "projector" in name for name in own) and not own & frozen
    files = [path.stat().st_size for path in broken.paths.checkpoint(6).rglob("model*.safetensors")]
    assert len(files) == (2 if stage == 3 else 1) and max(files) < 0.7 * sum(files) + (stage < 3) * sum(files), files
    assert any("vision" in name for name in frozen) and any("base_layer" in name for name in frozen)
    one, other = whole.weights(6), broken.weights(6)
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    if stage:  # other ranks than those that saved
        assert broken.run(tiny(**{**changes, "resources__tasks_per_node": 1}, steps=8), 1) == [0], broken.log()
        assert "goes on with 1" in broken.log()


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize(
    ("place", "rank"),
    [
        ("mmjobs.model.frozen_weights:contents", 1),
        ("mmjobs.model.frozen_weights:write", 1),
        ("mmjobs.model.frozen_weights:write", 0),
        ("mmjobs.model.frozen_weights:seal", 0),
        ("mmlaunch.run.manifest:seal", 0),
    ],
)
@pytest.mark.nightly  # two minutes
def test_a_rank_that_dies_while_they_are_kept(job: Jobs, tiny: Recipes, stage: int, place: str, rank: int) -> None:
    changes = {**LORA, "deepspeed": {"stage": stage}, "resources__tasks_per_node": 2, "steps": 4}
    whole, broken = job("whole"), job("broken")
    assert whole.run(tiny(**changes), 2) == [0, 0], whole.log()
    broken.prepare = kill_at(place, 1, rank)
    assert broken.run(tiny(**changes), 2) != [0, 0]
    broken.prepare = None
    assert broken.run(tiny(**changes), 2) == [0, 0], broken.log()
    assert {step: values[-1] for step, values in broken.losses().items()} == {
        step: values[-1] for step, values in whole.losses().items()
    }
    assert [path.name for path in broken.paths.frozen.iterdir()] == [store(whole).name]
    assert frozen_weights.is_whole(store(broken), fully=True)
    one, other = whole.weights(4), broken.weights(4)
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def damaged(folder: Path, how: str) -> None:
    """Of all files the last bit, or one file, its index, or all of it."""
    files = sorted(folder.glob("model-*.safetensors"))
    if how == "gone":
        shutil.rmtree(folder)
    elif how == "a bit":
        for path in files:
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.unlink()
            path.write_bytes(content)
    else:
        (files[0] if how == "a file" else folder / "weights.json").unlink()


@pytest.mark.parametrize(
    "how", ["a bit", *(pytest.param(how, marks=pytest.mark.nightly) for how in ("a file", "the index", "gone"))]
)
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
    shutil.copytree(store(other), store(first).with_name(store(other).name))
    pins = json.loads(run.paths.pins.read_text())
    run.paths.pins.write_text(json.dumps({name: value for name, value in pins.items() if name != "model.init_from"}))
    (first.paths.checkpoint(2) / "MANIFEST.json").unlink()
    assert run.run(tiny(**changes, steps=4)) == [94]
    says = ("has other frozen weights than step-2", begun, "put one of the two back")
    assert all(text in run.log() for text in says), run.log()


def kept(run: RunPaths, weights: dict[str, torch.Tensor]) -> str:
    """The name of weights that a single rank keeps."""
    model = frozen_weights.contents(weights)
    name = frozen_weights.name_of(model)
    frozen_weights.staging(run, name).mkdir(parents=True, exist_ok=True)
    frozen_weights.write(frozen_weights.staging(run, name), 0, weights)
    frozen_weights.seal(run, name, model, kept=True)
    return name


def test_what_nobody_has_changed_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size, its time and its inode are those of the file that was hashed; export hashes it again."""
    run, hashed, plain = RunPaths(tmp_path), list[Any](), frozen_weights.contents

    def counted(weights: dict[str, torch.Tensor]) -> Any:
        hashed.append(plain(weights))
        return hashed[-1]

    name = kept(run, {"weight": torch.arange(5.0)})
    monkeypatch.setattr(frozen_weights, "contents", counted)
    file = run.checkpoint(1) / "model" / "model.safetensors"
    file.parent.mkdir(parents=True)
    safetensors.torch.save_file({"own": torch.zeros(2)}, file, metadata=frozen_weights.metadata(name))
    assert frozen_weights.damage(file) is None and hashed
    hashed.clear()
    assert frozen_weights.damage(file) is None and not hashed
    assert frozen_weights.damage(file, fully=True) is None and hashed
    path = run.frozen_weights(name) / "model-0.safetensors"
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "is damaged" in (frozen_weights.damage(file) or "")


@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.nightly)])
def test_a_base_that_stays_where_it_is_need_not_be_kept(job: Jobs, tiny: Recipes, tmp_path: Path, stage: int) -> None:
    """The index alone is kept: resume, export and other runs read the base, and say so when it has changed."""
    base = job("base")
    assert base.run(tiny(steps=2)) == [0], base.log()
    export(base.paths.root, tmp_path / "of-base")
    changes = {**LORA, "model__init_from": str(tmp_path / "of-base"), "deepspeed__stage": stage}
    never = {**changes, "checkpoint__keep_base": "never", "resources__tasks_per_node": 2}
    whole, run = job("whole"), job("run")
    assert whole.run(tiny(**never | {"checkpoint__keep_base": "always"}, steps=6), 2) == [0, 0], whole.log()
    assert run.run(tiny(**never, steps=6, stop_at=4), 2) == [0, 0], run.log()
    assert not kept_files(run) and store(run).name == store(whole).name
    assert run.run(tiny(**never, steps=6), 2) == [0, 0] and run.losses() == whole.losses(), run.log()
    export(run.paths.root, tmp_path / "export")
    export(whole.paths.root, tmp_path / "of-whole")
    one, other = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("export", "of-whole"))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    following = job("following")
    assert following.run(tiny(steps=1, model__init_from=str(run.paths.checkpoint(6)))) == [0], following.log()
    file = tmp_path / "of-base" / "model.safetensors"
    weights = {name: value + 1 for name, value in safetensors.torch.load_file(file).items()}
    file.unlink()
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match="needs the frozen weights of the model that its run began with"):
        export(run.paths.root, tmp_path / "wrong")
    run.paths.pins.unlink()
    assert run.run(tiny(**never, steps=8), 2) != [0, 0]
    says = ("as checkpoint.keep_base says", f"model.init_from: {tmp_path / 'of-base'}", "put that model back as it was")
    assert all(text in run.log() for text in says), run.log()


def test_runs_of_the_same_frozen_weights_share_their_files(job: Jobs, tiny: Recipes) -> None:
    first, second = job("first"), job("second")
    changes = {"model__train": {"vision": "frozen", "projector": "full", "language": "full"}}
    assert first.run(tiny(**changes, steps=2)) == [0], first.log()
    begun = {**changes, "model__init_from": str(first.paths.checkpoint(2))}
    assert second.run(tiny(**begun, steps=2)) == [0], second.log()
    (one,), (other,) = kept_files(first), kept_files(second)
    assert one.stat().st_ino == other.stat().st_ino and one.stat().st_mode & 0o777 == 0o444
    shutil.rmtree(first.paths.root)
    assert second.run(tiny(**begun, steps=4)) == [0], second.log()


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


def test_what_cannot_be_linked_is_written(job: Jobs, tiny: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of another run that somebody may still write into is not shared; nor one on another file system."""
    first, second = job("first"), job("second")
    changes = {"model__train": {"vision": "frozen", "projector": "full", "language": "full"}}
    assert first.run(tiny(**changes, steps=2), 2) == [0, 0], first.log()
    kept_files(first)[1].chmod(0o644)
    begun = {**changes, "model__init_from": str(first.paths.checkpoint(2))}
    assert second.run(tiny(**begun, steps=2), 2) == [0, 0], second.log()
    assert [path.stat().st_nlink for path in kept_files(second)] == [1, 1]
    assert frozen_weights.is_whole(store(second), fully=True)


def test_an_index_becomes_a_copy_where_that_is_wanted_later(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    assert run.run(tiny(**LORA, checkpoint__keep_base="never", steps=2)) == [0], run.log()
    assert not kept_files(run)
    assert run.run(tiny(**LORA, checkpoint__keep_base="always", steps=3)) == [0], run.log()
    assert kept_files(run) and frozen_weights.is_whole(store(run), fully=True)


@pytest.mark.parametrize(
    ("setting", "name", "is_kept"),
    [("auto", "meta-llama/Meta-Llama-3-8B", False), ("auto", "/readable", False), ("auto", "/writable", True),
     ("always", "meta-llama/Meta-Llama-3-8B", True), ("never", "/writable", False)],
)  # fmt: skip
def test_what_comes_from_the_hub_or_a_read_only_folder_is_not_copied(
    tiny: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, name: str, is_kept: bool
) -> None:
    (tmp_path / "writable").mkdir()
    (tmp_path / "readable").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: "readable" not in str(path))
    where = f"{tmp_path}{name}" if name.startswith("/") else name
    assert keeps_base(tiny(model__init_from=where, checkpoint__keep_base=setting)) == is_kept


def test_random_weights_are_kept(tiny: Recipes) -> None:
    assert keeps_base(tiny()) and not keeps_base(tiny(checkpoint__keep_base="never"))


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    weights = {"a": torch.arange(6).reshape(2, 3), "b": torch.tensor(1.5, dtype=torch.bfloat16)}
    run = RunPaths(tmp_path)
    name = frozen_weights.name_of(frozen_weights.contents(weights))
    left = frozen_weights.staging(run, name) / ".model-0.safetensors.writing"
    left.mkdir(parents=True)
    (left / ".tmpAbCdEf").write_bytes(b"half")
    assert kept(run, weights) == name
    assert sorted(path.name for path in run.frozen_weights(name).iterdir()) == ["model-0.safetensors", "weights.json"]
    assert [path.name for path in run.frozen.iterdir()] == [name]
