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
from mmjobs.checkpoint.resume import _newest
from mmjobs.checkpoint.save import DONE, FULL, WRITING, CheckpointWriter
from mmjobs.checkpoint.train_state import TrainState
from mmjobs.engine.checkpoint_io import Files
from mmjobs.rank.context import Context
from mmjobs.rank.disk import DiskFull
from mmjobs.rank.events import EventWriter
from mmjobs.rank.position import Position
from mmjobs.rank.ranks import Ranks
from mmjobs.rank.signals import StopRequest
from mmjobs.rank.watchdog import Watchdog
from mmlaunch.recipe import Recipe
from mmlaunch.run import ledger, manifest
from mmlaunch.run.paths import RunPaths

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
Made = Callable[..., Any]


class Alone(Ranks):
    """The only rank; nothing goes over a network."""

    def highest(self, *values: float) -> list[float]:
        return [float(value) for value in values]

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def from_first(self, value: Any = None) -> Any:
        return value


class Weights:
    """What is trained, as far as a checkpoint is concerned."""

    layout: ClassVar[dict[str, Any]] = {}
    divided = False

    def __init__(self) -> None:
        self.value = b"first"

    def snapshot(self, folder: Path) -> Files:
        return {folder / "deepspeed" / "weights": self.value}

    def load(self, folder: Path) -> None:
        self.value = (folder / "deepspeed" / "weights").read_bytes()

    def weights_to_keep(self) -> None:
        return None

    def kept_as(self, name: str) -> None:
        return None

    def convert(self, folder: Path, converted: Path) -> Iterator[None]:
        return iter(())

    def load_converted(self, folder: Path, converted: Path) -> None:
        self.load(folder)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that keeps its writers waiting until the gate is opened."""
    opened = threading.Event()

    def slowly(*what: Any) -> None:
        assert opened.wait(30)
        background.write(*what)

    monkeypatch.setattr(save, "write", slowly)
    yield opened
    opened.set()


@pytest.fixture
def made(tiny: Recipes) -> Callable[..., tuple[CheckpointWriter, RunPaths, Weights]]:
    """A writer of checkpoints in a folder, and what it saves."""

    def make(folder: Path, **settings: Any) -> tuple[CheckpointWriter, RunPaths, Weights]:
        paths, weights = RunPaths(folder), Weights()
        paths.checkpoints.mkdir()
        ranks = Alone(0, 1, Watchdog(paths, Position()))
        events = EventWriter(paths, 1, True)
        context = Context(tiny(checkpoint=settings), paths, ranks, events, Position(), StopRequest())
        return CheckpointWriter(context, {"model": weights}, ()), paths, weights

    return make


def until(checkpoints: CheckpointWriter, state: int) -> None:
    end = time.monotonic() + 30
    while checkpoints.writing != state:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_training_goes_on_and_the_checkpoint_is_of_its_moment(
    tmp_path: Path, gate: threading.Event, made: Made
) -> None:
    checkpoints, paths, weights = made(tmp_path)
    state = TrainState(step=4)
    assert checkpoints.save(state, wait=False)
    weights.value, state.step = b"later", 5
    time.sleep(0.1)
    assert checkpoints.writing == WRITING and checkpoints.advance(WRITING)
    assert manifest.steps(paths.checkpoints) == [], "a kill would find nothing new"
    gate.set()
    until(checkpoints, DONE)
    checkpoints.advance(WRITING)  # another rank still writes
    time.sleep(0.05)
    assert manifest.steps(paths.checkpoints) == []
    checkpoints.advance(DONE)
    until(checkpoints, DONE)
    assert manifest.validate(paths.checkpoint(4)).step == 4
    assert (paths.checkpoint(4) / "model" / "deepspeed" / "weights").read_bytes() == b"first"
    assert TrainState.read(paths.checkpoint(4) / "state.json") == TrainState(step=4, layouts={"model": {}})
    assert not ledger.read(paths.events).all("checkpoint"), "not before the ranks have agreed on it"
    checkpoints.advance(DONE)
    (event,) = ledger.read(paths.events).all("checkpoint")
    assert event["step"] == 4 and event["stall"] < event["seconds"] - 0.1


def test_the_next_one_waits_and_so_does_a_stop(tmp_path: Path, gate: threading.Event, made: Made) -> None:
    checkpoints, paths, _ = made(tmp_path)
    checkpoints.save(TrainState(step=1), wait=False)
    threading.Timer(0.2, gate.set).start()
    checkpoints.save(TrainState(step=2), wait=True)
    assert manifest.steps(paths.checkpoints) == [1, 2] and checkpoints.writing == DONE
    first, second = ledger.read(paths.events).all("checkpoint")
    assert first["stall"] >= 0.19 and second["stall"] <= second["seconds"]


@pytest.mark.parametrize("settings", [{"background": False}, {"on_full_disk": "stop"}])
def test_recipe_may_ask_to_wait(tmp_path: Path, settings: dict[str, Any], made: Made) -> None:
    checkpoints, paths, _ = made(tmp_path, **settings)
    assert checkpoints.save(TrainState(step=1), wait=False)
    assert manifest.steps(paths.checkpoints) == [1]


def test_full_disk_is_told_later_and_other_errors_end_the_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Made
) -> None:
    checkpoints, paths, _ = made(tmp_path)

    def refused(number: int) -> Callable[..., None]:
        def refuse(*what: Any) -> None:
            raise OSError(number, "refused")

        return refuse

    monkeypatch.setattr(save, "write", refused(errno.ENOSPC))
    assert checkpoints.save(TrainState(step=3), wait=False)
    until(checkpoints, FULL)
    assert not checkpoints.advance(FULL)
    (warning,) = ledger.read(paths.events).all("warning")
    assert warning["step"] == 3 and "refused" in warning["what"] and not list(paths.checkpoints.iterdir())
    monkeypatch.setattr(save, "write", refused(errno.EACCES))
    checkpoints.save(TrainState(step=4), wait=False)
    with pytest.raises(PermissionError):
        until(checkpoints, DONE)
    (tmp_path / "strict").mkdir()
    strict, _, _ = made(tmp_path / "strict", on_full_disk="stop")
    monkeypatch.setattr(save, "write", refused(errno.ENOSPC))
    with pytest.raises(DiskFull):
        strict.save(TrainState(step=5), wait=False)


@pytest.mark.nightly  # fifteen seconds
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


def test_a_rejected_checkpoint_stays_until_enough_newer_ones_are_saved(tmp_path: Path, made: Made) -> None:
    checkpoints, paths, _ = made(tmp_path, keep=2)
    checkpoints.save(TrainState(step=1), wait=True)
    checkpoints.save(TrainState(step=3), wait=True)
    (paths.checkpoint(3) / "state.json").write_bytes(b"flipped")
    again = CheckpointWriter(checkpoints._context, checkpoints._engines, rejected={3})
    seen = []
    for step in (2, 4, 5, 6):
        again.save(TrainState(step=step), wait=True)
        seen.append(manifest.steps(paths.checkpoints))
    assert seen == [[1, 2, 3], [2, 3, 4], [4, 5], [5, 6]]


def test_what_is_rejected_says_for_how_long_it_stays(tmp_path: Path, made: Made) -> None:
    checkpoints, paths, _ = made(tmp_path, keep=2)
    checkpoints.save(TrainState(step=3), wait=True)
    (paths.checkpoint(3) / "state.json").write_bytes(b"flipped")
    assert _newest(checkpoints._context) == (None, 0)
    rejected = [event["rejected"] for event in ledger.read(paths.events).all("checkpoint") if "rejected" in event]
    assert len(rejected) == 1 and rejected[0].startswith("step-3/state.json: ")
    assert rejected[0].endswith(f"it stays in {paths.checkpoints} until checkpoint.keep (2) newer ones are saved")
