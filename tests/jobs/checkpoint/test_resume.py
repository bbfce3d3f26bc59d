"""A run that is killed, signalled or finds a damaged checkpoint goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mmjobs.model import frozen_weights
from mmjobs.tasks import train
from mmlaunch.recipe import Recipe
from mmlaunch.run import manifest

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
LONG: dict[str, Any] = {
    "steps": 30, "model__dropout": 0.2, "checkpoint__every": "4 steps", "evaluate__every": "7 steps",
    "resources__tasks_per_node": 2,
}  # fmt: skip


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_killed_run_resumes_bit_for_bit(job: Jobs, tiny: Recipes) -> None:
    recipe, whole, broken = tiny(**LONG), job("whole"), job("broken")
    assert whole.run(recipe, 2) == [0, 0], whole.log()
    for step, saved in ((6, 4), (15, 12)):
        broken.start(recipe, 2)
        broken.when(step, saved)
        broken.kill()
    assert broken.run(recipe, 2) == [0, 0], broken.log()
    expected = whole.losses()
    assert len(expected) == 30 and all(len(values) == 1 for values in expected.values())
    assert len(broken.events("resumed")) == 2
    again = broken.losses()
    assert any(len(values) > 1 for values in again.values()), "nothing was repeated: the kills came too late"
    assert {step: set(values) for step, values in again.items()} == {step: set(v) for step, v in expected.items()}
    assert same(whole.weights(30), broken.weights(30))


def test_signal_to_one_rank_saves_on_all_and_asks_for_another_attempt(job: Jobs, tiny: Recipes) -> None:
    run, recipe = job("run"), tiny(**{**LONG, "steps": 60, "checkpoint__every": "1000 steps"})
    run.start(recipe, 2)
    run.when(5)
    os.kill(run.ranks[1].pid or 0, signal.SIGUSR2)
    assert run.wait() == [90, 90], run.log()
    told = run.events("signal")[-1]
    assert told["name"] == "SIGUSR2" and run.saved() == [told["step"]]
    assert not run.paths.attempt(1).rank_errors
    assert run.run(recipe, 2) == [0, 0], run.log()
    assert run.events("resumed")[0]["step"] == told["step"]
    assert all(len(values) == 1 for values in run.losses().values()), "no step was lost or done twice"
    finished = len(run.events("step"))
    assert run.run(recipe, 2) == [0, 0]  # once more: it evaluates, and is done
    assert len(run.events("step")) == finished and len(run.events("evaluated")) > 1


def test_deadline_saves_in_time(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    deadline = time.time() + 16
    codes = run.run(tiny(steps=1_000_000, log__every=500), 1, MMLAUNCH_DEADLINE=str(deadline), MMLAUNCH_LEAD="10")
    assert codes == [90] and time.time() < deadline, run.log()
    assert run.events("signal")[-1]["name"] == "deadline"
    assert run.saved() == [run.events("signal")[-1]["step"]]


def test_damaged_checkpoint_is_rejected_and_the_one_before_is_used(job: Jobs, tiny: Recipes) -> None:
    """Each rank reads a part of the files."""
    run, recipe = job("run"), tiny(checkpoint__every="2 steps", checkpoint__keep=2, resources__tasks_per_node=2)
    assert run.run(recipe, 2) == [0, 0], run.log()
    expected, weights = run.losses(), run.weights(6)
    assert run.saved() == [4, 6]
    manifest.staging(run.paths.checkpoints, 5).mkdir()  # what a killed writer left
    folder = run.paths.checkpoint(6)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != manifest.NAME]
    for path in sorted(files, key=lambda path: path.name == "rank-1.pt"):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # one bit, the same length: only the hash can tell
        with pytest.raises(manifest.InvalidCheckpoint, match=path.name):
            manifest.validate(folder)
        if path.name != "rank-1.pt":
            path.write_bytes(content)
    assert run.run(recipe, 2) == [0, 0], run.log()
    assert "step-6/rank-1.pt" in run.events("checkpoint")[3]["rejected"]
    assert run.events("resumed")[0]["step"] == 4
    assert run.losses()[6] == expected[6] * 2 and same(run.weights(6), weights)
    assert sorted(path.name for path in run.paths.checkpoints.iterdir()) == ["step-4", "step-6"]


def test_best_and_every_nth_checkpoint_stay(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    settings = {"every": "1 steps", "keep": 1, "keep_every": 4, "best": "eval/loss", "best_is": "lowest"}
    assert run.run(tiny(steps=9, optim__lr=0.5, checkpoint=settings, evaluate__every="1 steps")) == [0], run.log()
    losses = {event["step"]: event["metrics"]["eval/loss"] for event in run.events("evaluated")}
    best = min(losses, key=lambda step: losses[step])
    assert set(run.saved()) == {4, 8, 9, best}


def test_full_disk_ends_or_outlives_the_save_and_keeps_what_is_there(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    run.paths.checkpoints.mkdir()
    mounted = os.system(f"mount -t tmpfs -o size=400k none {run.paths.checkpoints} 2>/dev/null") == 0
    if not mounted:
        pytest.skip("a small disk can be mounted by root only")
    try:
        recipe = tiny(checkpoint__every="2 steps", checkpoint__keep=1)
        assert run.run(recipe) == [93], run.log()  # the result itself does not fit
        size = run.events("checkpoint")[0]["bytes"]
        assert 200_000 < size < 400_000, "the disk holds one checkpoint and not two"
        assert run.saved() == [2] and manifest.newest(run.paths.checkpoints)[0] is not None
        assert [event["step"] for event in run.events("warning")] == [4, 6]
        assert json.loads(run.paths.attempt(1).rank_error(0).read_text())["type"] == "DiskFull"
        assert run.run(tiny(checkpoint__every="2 steps", checkpoint__on_full_disk="stop")) == [93]
        assert [event["step"] for event in run.events("step")] == [1, 2, 3, 4, 5, 6, 3, 4]
        assert list(run.paths.checkpoints.iterdir()) == [run.paths.checkpoint(2)]
        run.start(tiny(steps=100_000, checkpoint__every="100000 steps", checkpoint__keep=1), 1)
        run.when(5)
        os.kill(run.ranks[0].pid, signal.SIGUSR2)
        assert run.wait() == [93], "nothing was saved, so it may not say that it was"
    finally:
        os.system(f"umount {run.paths.checkpoints}")


def test_checkpoints_of_another_format_are_told_and_kept(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    assert run.run(tiny(steps=2)) == [0], run.log()
    name = run.paths.checkpoint(2) / manifest.NAME
    record = json.loads(name.read_text())
    name.write_text(json.dumps({key: value for key, value in record.items() if key != "sha256"} | {"format": 1}))
    assert run.run(tiny(steps=4)) == [94]
    assert "has format 1; this version reads another format, 2; resume the run with" in run.log()
    assert run.saved() == [2]


def test_loss_that_is_not_finite_names_step_and_samples(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    assert run.run(tiny(steps=2)) == [0], run.log()
    _poison(run.paths.checkpoint(2), run.paths.checkpoints)
    assert run.run(tiny(steps=9, optim__bad_steps=2)) == [1]
    record = json.loads(run.paths.attempt(2).rank_error(0).read_text())
    assert record["type"] == "NotFinite" and record["step"] == 5 and record["sample"].startswith("shapes:")
    assert "loss of step 5 is nan" in record["message"] and record["sample"] in record["message"]
    assert "number 3 in a row" in record["message"]
    assert [event["step"] for event in run.events("warning")] == [3, 4]
    (kept,) = torch.load(run.paths.attempt(2).root / "not-finite" / "rank-0.pt", weights_only=True)
    assert record["sample"] in kept["samples"] and len(kept["ids"]) == len(kept["samples"])
    assert run.run(tiny(steps=9, checkpoint__every="1 steps")) == [1]
    assert "weights themselves are not finite" in run.log()
    assert run.saved() == [2], "weights that are no numbers are never saved"


@pytest.mark.parametrize("stage", [0, *(pytest.param(stage, marks=pytest.mark.nightly) for stage in (2, 3))])
def test_a_disk_without_any_room_is_a_warning(job: Jobs, tiny: Recipes, stage: int) -> None:
    run = job("run")
    run.paths.checkpoints.mkdir()
    if os.system(f"mount -t tmpfs -o size=2m none {run.paths.checkpoints} 2>/dev/null"):
        pytest.skip("a small disk can be mounted by root only")
    try:
        assert run.run(tiny(steps=2, deepspeed__stage=stage), 2) == [0, 0], run.log()
        (run.paths.checkpoints / "filler").write_bytes(bytes(shutil.disk_usage(run.paths.checkpoints).free))
        recipe = tiny(steps=6, checkpoint__every="2 steps", deepspeed__stage=stage)
        assert run.run(recipe, 2) == [93, 93], run.log()  # the result itself does not fit
        assert [event["step"] for event in run.events("warning")] == [4, 6]
        assert run.saved() == [2] and manifest.newest(run.paths.checkpoints)[0] is not None
    finally:
        os.system(f"umount {run.paths.checkpoints}")


@pytest.mark.parametrize("stage", [0, *(pytest.param(stage, marks=pytest.mark.nightly) for stage in (1, 3))])
def test_a_resumed_run_has_the_settings_of_its_recipe(job: Jobs, tiny: Recipes, stage: int) -> None:
    """Not those that a checkpoint remembers; what does not fit to it is said in one sentence."""
    runs = {}
    for name, betas in (("same", [0.9, 0.95]), ("other", [0.5, 0.5])):
        runs[name] = run = job(name)
        assert run.run(tiny(steps=3, deepspeed__stage=stage)) == [0], run.log()
        assert run.run(tiny(steps=6, deepspeed__stage=stage, optim__betas=betas)) == [0], run.log()
    assert runs["same"].losses()[4] == runs["other"].losses()[4]
    assert runs["same"].losses()[6] != runs["other"].losses()[6]
    assert run.run(tiny(steps=9, deepspeed__stage=(stage + 2) % 4, precision="bf16")) == [94]
    assert f"was saved with deepspeed.stage {stage} (now {(stage + 2) % 4}), precision fp32 (now bf16)" in run.log()
    assert run.run(tiny(steps=7, deepspeed__stage=stage, data__train={"format": "shapes", "limit": 49})) == [0]
    assert "the data are not those that the run began with" in run.events("warning")[-1]["what"]


def _poison(checkpoint: Path, checkpoints: Path) -> None:
    staging = manifest.staging(checkpoints, 2)
    checkpoint.rename(staging)
    (staging / manifest.NAME).unlink()
    file = staging / "model" / "model.safetensors"
    metadata = frozen_weights.metadata(frozen_weights.named_by(file))
    weights = safetensors.torch.load(file.read_bytes())
    weights["lm_head.weight"][0, 0] = float("nan")
    safetensors.torch.save_file(weights, file, metadata=metadata)
    manifest.seal(staging, checkpoint, 2, 1)


def test_what_cannot_be_run_is_bad_input(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    assert run.run(tiny(data__train={"path": "/nowhere/rows.json", "format": "trl"})) == [94]
    record = json.loads(run.paths.attempt(1).rank_error(0).read_text())
    assert record["type"] == "BadInput" and "/nowhere/rows.json: no such file" in record["message"]
    assert "Traceback" not in run.log()
    shutil.rmtree(run.paths.attempts)


def _adds_up_again_and_again() -> None:
    """Before a rank trains: numbers to which several threads add are the same each time."""
    build_trainer = vars(train)["build_trainer"]

    def checked(*arguments: Any) -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(4)
        states, places, pull = torch.randn(7, 512, requires_grad=True), torch.arange(4000) % 7, torch.randn(4000, 512)
        sums = [torch.autograd.grad(states[places], states, pull)[0] for _ in range(20)]
        torch.set_num_threads(threads)
        assert all(torch.equal(one, sums[0]) for one in sums)
        return build_trainer(*arguments)

    setattr(train, "build_trainer", checked)  # noqa: B010  in a rank's own process, which ends


def test_what_threads_add_up_is_the_same_each_time(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    run.prepare = _adds_up_again_and_again
    assert run.run(tiny(steps=1, data__eval=[])) == [0], run.log()
