"""Saving beside the training: what is saved is of its moment, and it does not exist before all of it is written."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from mmjobs.checkpoint import background, save
from mmjobs.checkpoint.save import DONE, FULL, GOING_ON, Checkpoints
from mmjobs.checkpoint.train_state import Progress
from mmjobs.rank.disk import DiskFull
from mmjobs.rank.events import EventWriter
from mmjobs.rank.ranks import Ranks
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.checkpoint import Checkpoint
from mmlaunch.run import ledger, manifest
from mmlaunch.run.paths import RunPaths

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]


class Alone(Ranks):
    """The only rank; nothing goes over a network."""

    def highest(self, *values: float) -> list[float]:
        return [float(value) for value in values]

    def gather(self, value: Any) -> list[Any]:
        return [value]


class Weights:
    """What is trained, as far as a checkpoint is concerned."""

    layout: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.value = b"first"

    def snapshot(self, folder: Path) -> background.Files:
        return {folder / "deepspeed" / "weights": self.value}


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that keeps its writers waiting until the gate is opened."""
    opened = threading.Event()

    def slowly(files: background.Files) -> None:
        assert opened.wait(30)
        background.write(files)

    monkeypatch.setattr(save, "write", slowly)
    yield opened
    opened.set()


def made(folder: Path, **settings: Any) -> tuple[Checkpoints, RunPaths, Any]:
    paths = RunPaths(folder)
    paths.checkpoints.mkdir()
    section = Checkpoint.model_validate(settings)
    ranks = Alone(0, 1, None)  # type: ignore[arg-type]  no watchdog for what ends in a second
    return Checkpoints(paths, section, 1, ranks, EventWriter(paths.events, 1, True)), paths, Weights()


def until(checkpoints: Checkpoints, state: int) -> None:
    end = time.monotonic() + 30
    while checkpoints.writing != state:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_training_goes_on_and_the_checkpoint_is_of_its_moment(tmp_path: Path, gate: threading.Event) -> None:
    checkpoints, paths, weights = made(tmp_path)
    progress = Progress(step=4, cursor=32)
    assert checkpoints.save(weights, progress, wait=False)
    weights.value, progress.step = b"later", 5
    time.sleep(0.1)
    assert checkpoints.writing == GOING_ON and checkpoints.advance(GOING_ON)
    assert manifest.steps(paths.checkpoints) == [], "a kill would find nothing new"
    gate.set()
    until(checkpoints, DONE)
    checkpoints.advance(GOING_ON)  # another rank still writes
    time.sleep(0.05)
    assert manifest.steps(paths.checkpoints) == []
    checkpoints.advance(DONE)
    until(checkpoints, DONE)
    assert manifest.validate(paths.checkpoint(4)).step == 4
    assert (paths.checkpoint(4) / "deepspeed" / "weights").read_bytes() == b"first"
    assert Progress.read(paths.checkpoint(4)) == Progress(step=4, cursor=32)
    assert not ledger.read(paths.events).all("checkpoint"), "not before the ranks have agreed on it"
    checkpoints.advance(DONE)
    (event,) = ledger.read(paths.events).all("checkpoint")
    assert event["step"] == 4 and event["stall"] < event["seconds"] - 0.1


def test_the_next_one_waits_and_so_does_a_stop(tmp_path: Path, gate: threading.Event) -> None:
    checkpoints, paths, weights = made(tmp_path)
    checkpoints.save(weights, Progress(step=1), wait=False)
    threading.Timer(0.2, gate.set).start()
    checkpoints.save(weights, Progress(step=2), wait=True)
    assert manifest.steps(paths.checkpoints) == [1, 2] and checkpoints.writing == DONE
    first, second = ledger.read(paths.events).all("checkpoint")
    assert first["stall"] >= 0.19 and second["stall"] <= second["seconds"]


@pytest.mark.parametrize("settings", [{"background": False}, {"on_full_disk": "stop"}])
def test_recipe_may_ask_to_wait(tmp_path: Path, settings: dict[str, Any]) -> None:
    checkpoints, paths, weights = made(tmp_path, **settings)
    assert checkpoints.save(weights, Progress(step=1), wait=False)
    assert manifest.steps(paths.checkpoints) == [1]


def test_full_disk_is_told_later_and_other_errors_end_the_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, paths, weights = made(tmp_path)

    def refused(number: int) -> Callable[[background.Files], None]:
        def refuse(files: background.Files) -> None:
            raise OSError(number, "refused")

        return refuse

    monkeypatch.setattr(save, "write", refused(errno.ENOSPC))
    assert checkpoints.save(weights, Progress(step=3), wait=False)
    until(checkpoints, FULL)
    assert not checkpoints.advance(FULL)
    (warning,) = ledger.read(paths.events).all("warning")
    assert warning["step"] == 3 and "refused" in warning["what"] and not list(paths.checkpoints.iterdir())
    monkeypatch.setattr(save, "write", refused(errno.EACCES))
    checkpoints.save(weights, Progress(step=4), wait=False)
    with pytest.raises(PermissionError):
        until(checkpoints, DONE)
    (tmp_path / "strict").mkdir()
    strict, _, _ = made(tmp_path / "strict", on_full_disk="stop")
    monkeypatch.setattr(save, "write", refused(errno.ENOSPC))
    with pytest.raises(DiskFull):
        strict.save(weights, Progress(step=5), wait=False)


def test_it_changes_nothing_but_the_time(job: Jobs, tiny: Recipes) -> None:
    changes = {"deepspeed__stage": 2, "steps": 8, "checkpoint__every": "1 steps", "checkpoint__keep": 9}
    one, other = job("one"), job("other")
    assert one.run(tiny(**changes), 2) == [0, 0], one.log()
    assert other.run(tiny(**changes, checkpoint__background=False), 2) == [0, 0], other.log()
    assert one.saved() == other.saved() == list(range(1, 9)) and one.losses() == other.losses()
    for step in one.saved():
        manifest.validate(one.paths.checkpoint(step))
        for name, weight in one.weights(step).items():
            assert torch.equal(weight, other.weights(step)[name])
    assert all(event["stall"] <= event["seconds"] for event in one.events("checkpoint"))
