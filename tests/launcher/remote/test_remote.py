"""Runs on another machine: submitted over a real ssh, looked at, continued and cancelled from here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tests.launcher.remote.conftest import There
from tests.runs import at_step, ended, mmlaunch, until, wait_for

from mmlaunch.remote import records
from mmlaunch.run.paths import RunPaths

FORMAT = """\
from mmjobs.data.example import Answer, Example, Turn
from mmjobs.data.readers.rows import examples


def rows(source):
    def example(row):
        return Example((), (Turn("user", (row.text("ask"),)),), (Answer(row.text("say")),), row.origin)

    return examples(source, "my format", ["ask"], example)
"""
BASE = """\
model: {language: {random: {width: 16, layers: 1, heads: 2}}}
objective: sft
optim: {lr: 1e-3}
batch: {global: 4}
steps: 2
precision: fp32
log: {every: 1, tensorboard: false}
resources: {nodes: 1, gpus_per_node: 0, tasks_per_node: 1, cpus_per_rank: 1}
"""
RECIPE = """\
extends: ../base/tiny.yaml
name: far
data: {train: {path: data/rows.jsonl, format: "code/my_format.py:rows"}, workers: 0}
env: [LAB_TOKEN]
"""
SECRET = "quite'secret $value"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: There) -> Path:
    """A project on the laptop; its data are on the other machine."""
    project = tmp_path / "my project"
    for name, text in {"base/tiny.yaml": BASE, "recipes/far.yaml": RECIPE, "code/my_format.py": FORMAT}.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    data = there.projects / project.name / "data"
    data.mkdir(parents=True)
    rows = [json.dumps({"ask": f"{number}?", "say": "Yes."}) for number in range(8)]
    data.joinpath("rows.jsonl").write_text("\n".join([*rows, ""]))
    monkeypatch.chdir(project)
    monkeypatch.setenv("LAB_TOKEN", SECRET)
    return Path("recipes/far.yaml")


@pytest.fixture
def calls(own_home: Path) -> Callable[[], str]:
    """The arguments of all calls of ssh so far."""
    path = own_home / "calls"
    return lambda: path.read_text() if path.exists() else ""


def submitted(there: There, *arguments: str | Path) -> RunPaths:
    """Submit on the other machine; the run directory there."""
    done = mmlaunch("submit", *arguments, "--cluster", "there")
    assert done.returncode == 0, done.stderr
    name = done.stdout.split()[0]
    assert f"next: mmlaunch status {name}" in done.stdout
    return RunPaths(there.runs / name)


def test_a_run_from_its_submission_to_its_export(
    recipe: Path, there: There, own_home: Path, calls: Callable[[], str]
) -> None:
    run = submitted(there, recipe, "-s", "steps=100000")
    command = [sys.executable, "-m", "mmlaunch", "logs", "-f", "last"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as follow:
        assert follow.stdout is not None and follow.stdout.readline().startswith(b"[0] ")
        wait_for(run, at_step(1))
        assert processes(f"logs --follow {run.name}")
        os.killpg(follow.pid, signal.SIGINT)  # Ctrl-C: the command there ends too, and the run goes on
        assert follow.wait(20) == 130
    until(lambda: not processes(f"logs --follow {run.name}"))
    assert f"{run.name}  running" in mmlaunch("status", run.name).stdout

    cancelled = mmlaunch("cancel", run.name)
    assert cancelled.returncode == 0 and cancelled.stdout.startswith(f"{run.name}: "), cancelled
    wait_for(run, ended)
    (record,) = json.loads(mmlaunch("status", "--json").stdout)
    assert (record["run"], record["host"], record["state"]) == (run.name, "there", "cancelled")
    resumed = mmlaunch("resume", run.name, "-s", f"steps={record['step'] + 2}")
    assert resumed.returncode == 0, resumed
    wait_for(run, lambda events: sum(event["event"] == "ended" for event in events) == 2)

    listed = mmlaunch("status").stdout
    assert listed.startswith(f"there:{there.projects}/my project\n") and f"{run.name}  done" in listed
    assert f"{run.name}: Complete after 2 attempts" in mmlaunch("why", run.name[-4:]).stdout
    assert "goodput" in mmlaunch("report", "far").stdout
    again = mmlaunch("resume", run.name)
    assert again.returncode == 2 and "is done; to train on" in again.stderr
    exported = mmlaunch("export", "last", "--to", "out/model")
    assert exported.stdout.endswith(f"written on there, in {there.projects}/my project\n"), exported
    assert (there.projects / "my project" / "out" / "model" / "config.json").is_file()

    assert "secret" not in calls() and calls().count("sh -s") > 8
    for path in (path for folder in (there.folder, own_home, Path.cwd()) for path in folder.rglob("*")):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), f"{path} holds the secret"


def processes(words: str) -> list[str]:
    """The command lines of all processes of the mmlaunch program that hold these words."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode())
    return [line for line in lines if words in line and "bin/mmlaunch" in line]


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        (["-s", "optim.learning_rate=1"], "did you mean optim.lr?"),
        (["-s", "optim.lr=1e-3,1e-4"], "add --sweep"),
        (["-s", "data.train.format=code/my_format.py:row"], "did you mean code/my_format.py:rows?"),
        (["-s", "resources.gpus_per_node=1"], "this cluster has no GPUs"),
        (["-s", "env=[LAB_KEY]"], "LAB_KEY is not set in your shell"),
        (["-s", f"data.train.path={SECRET}"], "-s would hold the value of LAB_TOKEN"),
        (
            ["-s", "batch.global=3", "-s", "seed=1,2", "--sweep", "-s", "resources.tasks_per_node=2"],
            "3 examples do not",
        ),
    ],
)
def test_mistakes_are_said_before_anything_travels(
    recipe: Path, calls: Callable[[], str], arguments: list[str], right: str
) -> None:
    refused = mmlaunch("submit", recipe, "--cluster", "there", *arguments)
    assert refused.returncode == 2 and right in refused.stderr, refused
    assert not calls()


def test_a_file_that_holds_a_secret_stays_here(recipe: Path, calls: Callable[[], str]) -> None:
    Path("code/my_format.py").write_text(f'{FORMAT}TOKEN = "{SECRET}"\n')
    refused = mmlaunch("submit", recipe, "--cluster", "there")
    assert refused.returncode == 2 and "my_format.py would hold the value of LAB_TOKEN" in refused.stderr
    assert not calls()


def test_what_is_wrong_there_is_said_there(recipe: Path, there: There) -> None:
    refused = mmlaunch("submit", recipe, "--cluster", "there", "-s", "data.train.path=data/others.jsonl")
    assert refused.returncode == 2, refused
    assert f"relative paths start at {there.projects}/my project" in refused.stderr and not records.records()


def test_templates_pipelines_and_sweeps_go_the_same_way(recipe: Path, there: There) -> None:
    (recipe.parent / "templates").mkdir()
    (recipe.parent / "templates" / "local.sh.j2").write_text(
        "#!/bin/sh\n# of {{ recipe.name }}, seed {{ recipe.seed }}\n"
    )
    sweep = mmlaunch("submit", recipe, "--cluster", "there", "--dry-run", "-s", "seed=5")
    assert sweep.stdout == "#!/bin/sh\n# of far, seed 5\n", sweep
    points = mmlaunch("submit", recipe, "--cluster", "there", "--sweep", "-s", "seed=5..7", "--dry-run")
    assert "3 points" in points.stdout, points
    stages = "{a: far.yaml, b: {extends: far.yaml, model: {init_from: stage:a}}}"
    recipe.with_name("both.yaml").write_text(f"name: both\nstages: {stages}\n")
    both = mmlaunch("submit", "recipes/both.yaml", "--cluster", "there", "--dry-run", "--until", "a")
    assert both.stdout.endswith("#!/bin/sh\n# of both-a, seed 0\n"), both
    assert len(list((there.projects / "my project" / "sent").iterdir())) == 2
    assert not there.runs.exists()


def test_a_task_on_a_model_that_is_there(recipe: Path) -> None:
    data = "data: {input: {path: data/rows.jsonl, format: llava, images: none}}"
    text = f"name: task\nobjective: predict\nmodel: {{init_from: runs/sft-1}}\n{data}\n"
    recipe.with_name("task.yaml").write_text(f"{text}resources: {{nodes: 1, gpus_per_node: 0, tasks_per_node: 1}}\n")
    refused = mmlaunch("submit", "recipes/task.yaml", "--cluster", "there")
    assert refused.returncode == 2 and "no run, checkpoint or model folder runs/sft-1" in refused.stderr, refused
    assert "sent/task-" in refused.stderr, "it is the other machine that does not know it"
    recipe.with_name("all.yaml").write_text("name: all\nstages: {a: task.yaml, b: far.yaml, c: task.yaml}\n")
    whole = mmlaunch("submit", "recipes/all.yaml", "--cluster", "there")
    assert whole.returncode == 2 and whole.stderr.count("sent/all-") == 1, whole
    wrong = mmlaunch("submit", "recipes/all.yaml", "--cluster", "there", "-s", "stages.b.optim.lr=fast")
    assert wrong.returncode == 2 and "optim.lr" in wrong.stderr and "sft-1" not in wrong.stderr, wrong
