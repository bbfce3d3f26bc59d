"""Beside a live run: a command with a rank's environment, its stacks, and traces of its steps."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runs import at_step, ended, mmlaunch, submit, wait_for, write_conversations

from mmlaunch.errors import RecipeError
from mmlaunch.load import load_recipe
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose

RECIPE = """\
name: live
model:
  language: {random: {width: 16, layers: 1, heads: 2}}
data: {train: {path: rows.json, format: llava, images: none}, workers: 0}
objective: sft
optim: {lr: 1e-3}
batch: {global: 4}
steps: STEPS
precision: fp32
log: {every: 1, tensorboard: false}
env: [COLOUR]
resources: {nodes: 1, gpus_per_node: 0, tasks_per_node: 2, cpus_per_rank: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_conversations(tmp_path / "rows.json")
    path = tmp_path / "live.yaml"
    path.write_text(RECIPE.replace("STEPS", "100000"))
    return path


@pytest.fixture
def run(recipe: Path) -> Iterator[RunPaths]:
    """A run of two ranks that goes on until the test ends."""
    live = submit(recipe, COLOUR="dark red")
    wait_for(live, at_step(3))
    yield live
    mmlaunch("cancel", live.name, "--now")


def test_what_can_be_done_beside_a_live_run(run: RunPaths) -> None:
    told = mmlaunch("attach", run.name, "--rank", "1", "--", "sh", "-c", 'echo "$COLOUR, $RANK, $MMLAUNCH_RUN"; exit 7')
    assert (told.returncode, told.stdout) == (7, f"dark red, 1, {run.root}\n"), told.stderr
    process = mmlaunch("attach", run.name, "--", "cat", "/proc/$RANK_PID/comm")
    assert process.returncode == 0 and process.stdout.startswith("python"), process
    command = [sys.executable, "-m", "mmlaunch", "attach", run.name]
    shell = subprocess.run(command, input="echo $RANK\nexit 5\n", capture_output=True, text=True, check=False)
    assert (shell.returncode, shell.stdout) == (5, "0\n") and "type exit to leave" in shell.stderr
    stacks = mmlaunch("attach", run.name, "--rank", "1", "--stacks")
    assert stacks.returncode == 0 and 'File "' in stacks.stdout and "trainer.py" in stacks.stdout, stacks
    assert "has no rank 2 that works now; it has 0 to 1" in mmlaunch("attach", run.name, "--rank", "2").stderr
    traced = mmlaunch("profile", run.name, "--steps", "2", "--rank", "0", "--rank", "1")
    assert traced.returncode == 0 and "Self CPU" in traced.stdout, traced
    traces = sorted(run.profiles.glob("steps-*/rank-*.json.gz"))
    assert sorted({path.name for path in traces}) == ["rank-0.json.gz", "rank-1.json.gz"]
    with gzip.open(traces[0]) as file:
        assert len(json.load(file)["traceEvents"]) > 100
    again = mmlaunch("profile", run.name, "--steps", "1")
    assert again.returncode == 0 and len(list(run.profiles.glob("steps-*/rank-0.json.gz"))) == 2
    assert (
        "there is no rank" not in again.stderr and "ranks 0 to 1" in mmlaunch("profile", run.name, "--rank", "9").stderr
    )
    mmlaunch("cancel", run.name, "--now")
    wait_for(run, ended)
    for words in (["attach", run.name], ["profile", run.name]):
        over = mmlaunch(*words)
        assert over.returncode and "cancelled" in over.stderr, over


def test_steps_that_a_recipe_names(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("STEPS", "6") + "profile: {steps: [3, 4], ranks: [0, 1], shapes: true}\n")
    run = submit(recipe, COLOUR="red")
    events = wait_for(run, ended)
    assert [event["state"] for event in events if event["event"] == "ended"] == ["done"]
    names = {path.name for path in (run.profiles / "steps-3-4").iterdir()}
    assert names == {"rank-0.json.gz", "rank-0.txt", "rank-1.json.gz", "rank-1.txt"}
    assert "profile of steps 3 to 4: profiles/steps-3-4/rank-0.json.gz" in run.attempt(1).rank_log(0).read_text()


@pytest.mark.parametrize(
    ("override", "right"),
    [("profile=[5, 3]", "3 comes before 5"), ("profile={steps: 2, ranks: 2}", "there is no rank 2"),
     ("profile=100001", "the run has 100000 steps: none of these is traced"),
     ("profile={step: 2, rank: 0, time: 3}", "unknown key")],
)  # fmt: skip
def test_what_cannot_be_traced(recipe: Path, override: str, right: str) -> None:
    with pytest.raises(RecipeError, match=right):
        load_recipe(recipe, [override])


def test_slurm_runs_it_inside_the_job() -> None:
    words = choose.named("slurm").beside({"job": "4211773"}, "gpu014", True)
    assert words == ["srun", "--jobid=4211773", "--overlap", "--nodes=1", "--ntasks=1", "--nodelist=gpu014", "--pty"]
