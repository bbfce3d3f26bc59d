"""The curves of a run: one for all attempts, whatever an attempt that died had written beyond its checkpoint."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from mmjobs.metrics.tensorboard import Sample, TensorBoardWriter


def attempt(folder: Path, resumed: int, last: int, evaluated: tuple[int, ...] = ()) -> None:
    """One attempt: a point at each step, and an evaluation after some."""
    written = TensorBoardWriter(folder, True, resumed)
    for step in range(resumed + 1, last + 1):
        written.scalars({"train/loss": 1 / step}, step)
        if step in evaluated:
            measure(written, step)
    written.flush()


def measure(written: TensorBoardWriter, step: int) -> None:
    written.scalars({"eval/loss": 1 / step}, step)
    written.samples([Sample("colour?", "red", "blue", torch.rand(1, 3, 8, 8))], step)


def steps(folder: Path) -> dict[str, list[int]]:
    """The steps of every curve, as they stand in all the files together."""
    found = defaultdict(list)
    for path in folder.iterdir():
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found[value.tag].append(event.step)
    return {tag: sorted(numbers) for tag, numbers in found.items()}


def test_steps_that_are_done_again_stand_there_once(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 12, evaluated=(10, 12))
    attempt(tmp_path, 10, 15, evaluated=(14,))  # step 12 is not evaluated this time: nothing may stand there
    found = steps(tmp_path)
    assert found["train/loss"] == list(range(1, 16))
    assert found["eval/loss"] == found["samples/0"] == found["samples/0/text_summary"] == [10, 14]


def test_an_older_checkpoint_reaches_back_over_several_attempts(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 12)
    attempt(tmp_path, 10, 20, evaluated=(20,))
    attempt(tmp_path, 5, 8)
    assert steps(tmp_path) == {"train/loss": list(range(1, 9))}
    attempt(tmp_path, 0, 3)  # no checkpoint was left
    assert steps(tmp_path) == {"train/loss": [1, 2, 3]}


def test_a_result_that_is_measured_again_stands_there_once(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 4, evaluated=(2, 4))
    written = TensorBoardWriter(tmp_path, True, resumed=4, again=True)
    measure(written, 4)
    written.flush()
    found = steps(tmp_path)
    assert found["train/loss"] == [1, 2, 3, 4]
    assert found["eval/loss"] == found["samples/0/text_summary"] == [2, 4]


def test_an_event_that_a_kill_tore_does_no_harm(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 6)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for lost in (1, 5, len(whole) // 2, len(whole) - 3):
        file.write_bytes(whole[:-lost])
        before = steps(tmp_path).get("train/loss", [])
        attempt(tmp_path, 4, 6)
        assert steps(tmp_path)["train/loss"] == [*(step for step in before if step <= 4), 5, 6]
        for path in set(tmp_path.iterdir()) - {file}:
            path.unlink()


def test_a_viewer_that_looks_on_forgets_them_too(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 12, evaluated=(12,))
    viewer = EventAccumulator(str(tmp_path))  # TensorBoard's reader in Python
    viewer.Reload()
    assert [point.step for point in viewer.Tensors("train/loss")] == list(range(1, 13))
    time.sleep(1 - time.time() % 1)  # files sort by the second in their names
    attempt(tmp_path, 10, 13)
    viewer.Reload()
    assert [point.step for point in viewer.Tensors("train/loss")] == list(range(1, 14))
    assert viewer.Tensors("eval/loss") == []
