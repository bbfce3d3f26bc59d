"""Experiment trackers: one continuous run over a killed and resumed run, each in the form that needs no network."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.kills import kill_at

from mmjobs.metrics.curves import TrackerWriter
from mmjobs.metrics.trackers.mlflow import flat
from mmjobs.metrics.trackers.tracker import TrackedRun, answers
from mmlaunch.recipe import Recipe

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
OWN = """\
import json

class Tracker:
    def __init__(self, run):
        self.path = run.folder / "points.jsonl"
        self.options, self.name = run.options, run.name

    def log(self, values, step):
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "values": values, "name": self.name, **self.options}) + "\\n")

    def close(self, done):
        (self.path.parent / "ended").write_text(str(done))
"""


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Nobody's key, and no server: the environment of the ranks, and of this process, which reads what they wrote."""
    environment = {
        "WANDB_API_KEY": "", "WANDB_BASE_URL": "http://127.0.0.1:9", "MLFLOW_TRACKING_URI": "",
        "MLFLOW_ALLOW_FILE_STORE": "true", "TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path),
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


def records(path: Path) -> Iterator[bytes]:
    """The records of an offline run: a log of LevelDB's form, blocks of 32 KiB with pieces of type 1 to 4."""
    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # the end of a block
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield whole
            whole = b""


def of_wandb(run: Any) -> dict[str, list[int]]:
    """The steps of each curve in what `wandb sync` would send; all of it is of one run."""
    from wandb.proto import wandb_internal_pb2

    internal: Any = wandb_internal_pb2
    steps: dict[str, list[int]] = {}
    files = sorted((run.paths.tracker("wandb") / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2, "one of each attempt"
    for path in files:
        for data in records(path):
            record = internal.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                assert (record.run.run_id, record.run.project) == (run.paths.name, "mmlaunch")
            for item in record.history.item:
                name = item.key or ".".join(item.nested_key)
                steps.setdefault(name, []).append(record.history.step.num)
    return steps


def of_mlflow(run: Any) -> dict[str, list[int]]:
    from mlflow import MlflowClient

    client = MlflowClient(run.paths.tracker("mlflow").as_uri())
    experiment = client.get_experiment_by_name("mmlaunch")
    assert experiment is not None
    (one,) = client.search_runs([experiment.experiment_id])
    assert one.info.run_name == run.paths.name and one.data.params["optim.lr"] == "0.003"
    assert one.info.status == "FINISHED" and one.data.tags["team"] == "vision"
    return {
        name: [point.step for point in client.get_metric_history(one.info.run_id, name)] for name in one.data.metrics
    }


def of_trackio(run: Any) -> dict[str, list[int]]:
    """What `trackio show` reads."""
    steps: dict[str, list[int]] = {}
    with closing(sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "mmlaunch.db")) as database:
        rows = list(database.execute("select run_id, run_name, step, metrics from metrics"))
    assert len({(number, name) for number, name, *_ in rows}) == 1 and rows[0][1] == run.paths.name
    for _, _, step, metrics in rows:
        for name in json.loads(metrics):
            steps.setdefault(name, []).append(step)
    return steps


def of_own(run: Any) -> dict[str, list[int]]:
    folder = run.paths.tracker("3-Tracker")
    points = [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]
    assert all(point["name"] == run.paths.name and point["colour"] == "red" for point in points)
    assert (folder / "ended").read_text() == "True"
    return {
        name: [point["step"] for point in points if name in point["values"]] for name in ("train/loss", "eval/loss")
    }


def test_a_killed_and_resumed_run_is_one_run(job: Jobs, tiny: Recipes, no_network: dict[str, str]) -> None:
    run = job("run-1129-abcd")
    run.paths.plugin_files.mkdir(parents=True)
    run.paths.plugin_file("my_tracker.py").write_text(OWN)
    trackers: list[Any] = ["wandb", {"kind": "mlflow", "options": {"team": "vision"}}, "trackio"]
    trackers.append({"kind": "my_tracker.py:Tracker", "options": {"colour": "red"}})
    recipe = tiny(steps=6, checkpoint__every="2 steps", evaluate__every="3 steps", log__trackers=trackers)
    run.prepare = kill_at("mmjobs.train.trainer:Trainer._step", 6)
    assert run.run(recipe, **no_network)[0] == -9, run.log()
    run.prepare = None
    assert run.run(recipe, **no_network) == [0], run.log()
    assert "gets no more points" not in run.log(), run.log()
    assert [event["step"] for event in run.events("resumed")] in ([2], [4]), "some steps are done twice"
    for of_tracker in (of_wandb, of_mlflow, of_trackio, of_own):
        steps = of_tracker(run)
        whole = sorted(steps["train/loss"])
        most = 12 if of_tracker is of_trackio else 7  # points that it got just before the kill may stand there again
        assert set(whole) == {1, 2, 3, 4, 5, 6} and len(whole) <= most, (of_tracker.__name__, steps)
        assert set(steps["eval/loss"]) == {3, 6}, (of_tracker.__name__, steps)


def test_a_package_that_is_missing_is_an_error_before_the_first_step(
    job: Jobs, tiny: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = job("run")
    recipe = tiny(steps=1, log__trackers="my_tracker.py:Tracker")
    assert run.run(recipe) == [94] and "my_tracker.py:Tracker cannot be loaded" in run.log()
    run.paths.plugin_files.mkdir(parents=True)
    run.paths.plugin_file("my_tracker.py").write_text("class Other: ...")
    assert run.run(recipe) == [94] and "my_tracker.py defines no Tracker" in run.log()


class Slow:
    """A server that does not answer, until it is told to."""

    def __init__(self) -> None:
        self.answer, self.points = threading.Event(), list[tuple[dict[str, float], int]]()

    def log(self, values: Any, step: int) -> None:
        self.answer.wait()
        if step == 3:
            raise OSError("the connection was reset")
        self.points.append((values, step))

    def close(self, done: bool) -> None:
        pass


def test_a_server_that_hangs_or_fails_costs_its_curves_alone(tmp_path: Path) -> None:
    server, warnings = Slow(), list[str]()
    writer = TrackerWriter("mlflow", lambda: server, tmp_path / "t" / "steps.json", warnings.append)
    began = time.monotonic()
    for step in (1, 2, 3, 4):
        writer.scalars({"train/loss": 1.0, "train/odd": float("nan")}, step)
    writer.end(done=True)
    writer.wait(0.2)
    assert time.monotonic() - began < 5
    assert warnings == ["mlflow has not taken all points: the run does not wait longer"]
    server.answer.set()
    writer._thread.join(10)
    assert server.points == [({"train/loss": 1.0}, 1), ({"train/loss": 1.0}, 2)]
    assert "mlflow gets no more points: OSError: the connection was reset" in warnings[1]
    assert json.loads((tmp_path / "t" / "steps.json").read_text()) == {"train": 2}


def test_where_curves_go(tmp_path: Path) -> None:
    run = TrackedRun("r", "p", {}, tmp_path, "auto", {})
    assert not answers("http://127.0.0.1:9") and not run.reaches("http://127.0.0.1:9")
    assert TrackedRun("r", "p", {}, tmp_path, "always", {}).reaches("http://127.0.0.1:9")
    assert not TrackedRun("r", "p", {}, tmp_path, "never", {}).reaches("http://127.0.0.1:9")
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": [3]}) == {"a.b": 1, "a.c.d": 2, "e": [3]}
