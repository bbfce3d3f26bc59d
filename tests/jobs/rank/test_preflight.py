"""An unfit node ends the attempt before anything is built, and is named."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmjobs.rank import preflight
from mmlaunch.recipe import Recipe
from mmlaunch.restart import policy

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]


def test_one_unfit_node_ends_the_attempt_on_all(job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    run = job("run")
    (tmp_path / "scratch-0").mkdir()
    where = {"TMPDIR": str(tmp_path / "scratch-{rank}"), "SLURMD_NODENAME": "gpu{rank}"}
    assert run.run(tiny(resources__tasks_per_node=2), 2, **where) == [91, 91], run.log(1)
    attempt = run.paths.attempt(1)
    assert attempt.rank_errors == [attempt.rank_error(1)], "the other node is fit"
    found = json.loads(attempt.rank_error(1).read_text())
    assert found["type"] == "UnfitNode" and found["node"] == "gpu1" and found["step"] is None
    wrong = f"node gpu1: cannot write to TMPDIR {tmp_path}/scratch-1: No such file or directory"
    assert found["message"] == wrong and wrong in run.log(0) and wrong in run.log(1)
    assert "Traceback" not in run.log(0) + run.log(1)
    assert not run.events("ready", "preflight")
    ending = policy.classify(91, attempt, run.events())
    assert ending.cause == "node" and wrong in ending.evidence
    (tmp_path / "scratch-1").mkdir()
    assert run.run(tiny(resources__tasks_per_node=2, steps=1), 2, **where) == [0, 0], run.log()
    (event,) = run.events("preflight")
    assert event["attempt"] == 2 and 0 <= event["seconds"] < 5
    (started,) = run.events("started_up")
    assert started["step"] == 1 and all(seconds >= 0 for seconds in started["phases"].values())
    order = ["loads the libraries", "joins the other ranks", "checks the nodes", "loads the model", "first step"]
    assert [phase for phase in started["phases"] if phase in order] == order
    assert not list((tmp_path / "scratch-0").iterdir()) and not list(run.paths.root.glob(".preflight*"))


def test_run_directory_without_room_is_told_even_when_nothing_can_be_written(
    job: Jobs, tiny: Recipes, mount: Callable[[Path, str], None]
) -> None:
    run = job("run")
    mount(run.paths.root, "size=2m")
    assert run.run(tiny(), SLURMD_NODENAME="") == [91], run.log()
    message = json.loads(run.paths.attempt(1).rank_error(0).read_text())["message"]
    assert message.startswith(f"node {socket.gethostname()}: the run directory {run.paths.root} has 1 MiB left; 64 are")
    with pytest.raises(OSError), (run.paths.root / "filling").open("wb", buffering=0) as file:
        while True:
            assert file.write(bytes(4096)) == 4096
            run.paths.resolved.write_bytes(bytes(4096))  # the page that the next attempt's recipe takes
    assert run.run(tiny()) == [91]
    run.kill()


@pytest.mark.parametrize(
    "options, problem",
    [
        ("size=80m", None),
        ("size=80m,ro", "cannot write to scratch {}: Read-only file system"),
        ("size=1m", "scratch {} has 1 MiB left; 64 are needed"),
        ("size=80m,nr_inodes=50", "scratch {} has room for 49 more files; 1000 are needed"),
    ],
)
def test_folders(options: str, problem: str | None, tmp_path: Path, mount: Callable[[Path, str], None]) -> None:
    mount(tmp_path, options)
    assert preflight.folder_problem("scratch", tmp_path) == (problem and problem.format(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs")
def test_missing_gpus_are_counted() -> None:
    assert preflight.gpu_problem(0) is None
    assert preflight.gpu_problem(8) == "0 GPUs can be used instead of 8"
