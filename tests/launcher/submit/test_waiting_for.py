"""Jobs that wait: for a time, for another run, for another job; what sbatch gets, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.runs import mmlaunch

from mmlaunch.errors import MmlaunchError
from mmlaunch.recipe.resources import Resources
from mmlaunch.run import ledger
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose
from mmlaunch.schedulers.base import Dependency
from mmlaunch.schedulers.slurm import queue
from mmlaunch.submit.waiting_for import dependencies, problems

PROGRAMS = {
    "sbatch": '[ "$1" = --version ] || echo "$@" >> "$FAKE_SLURM/called"; echo 900',
    "srun": "true",
    "scontrol": "true",
    "squeue": 'cat "$FAKE_SLURM/queue" 2>/dev/null',
    "sacct": 'cat "$FAKE_SLURM/accounting" 2>/dev/null',
}
CPUS = ["-s", "resources.tasks_per_node=1"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which programs called sbatch, squeue and so on keep their arguments, and read their answers."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setattr(queue, "look", queue.Queue(floor=0).look)
    return folder


def a_run(home: Path, name: str, job: str, executor: str = "slurm", ended: bool = False) -> RunPaths:
    run = RunPaths(home / "runs" / name)
    run.root.mkdir(parents=True)
    run.resolved.write_text("name: run\n")
    ledger.append(run.events, "submitted", executor=executor, name=name, submission=1)
    ledger.append(run.events, "queued", job=job)
    if ended:
        ledger.append(run.events, "ended", state="done")
    return run


def wanted(after: str) -> list[Dependency]:
    return dependencies(Resources(after=after), choose.named("slurm"), RunPaths(Path("/runs/own")))


def test_a_run_waits_for_the_job_of_another(own_home: Path, fake: Path) -> None:
    a_run(own_home, "sft-1120-aaaa", "70", ended=True)
    a_run(own_home, "sft-1121-bbbb", "71")
    (fake / "queue").write_text("71|RUNNING|None|N/A\n")
    assert wanted("sft-1121-bbbb") == wanted("bbbb") == [Dependency("71", "end")]
    assert wanted("sft-1120-aaaa") == []  # it has ended
    (fake / "queue").write_text("71|COMPLETED|None|N/A\n")
    assert wanted("sft-1121-bbbb") == []  # so has its job


def test_of_several_runs_of_a_recipe_the_newest_is_meant(own_home: Path, fake: Path) -> None:
    for number, name in enumerate(("sft-1120-aaaa", "sft-1121-bbbb", "sft-long-1122-cccc")):
        run = a_run(own_home, name, str(70 + number))
        os.utime(run.resolved, (1e9 + number,) * 2)
    (fake / "queue").write_text("70|RUNNING|None|N/A\n71|PENDING|Priority|N/A\n72|PENDING|Priority|N/A\n")
    assert wanted("sft") == [Dependency("71", "end")]


def test_a_run_does_not_wait_for_itself(own_home: Path, fake: Path) -> None:
    run = a_run(own_home, "sft-1120-aaaa", "70")
    (fake / "queue").write_text("70|RUNNING|None|N/A\n")
    assert dependencies(Resources(after="sft-1120"), choose.named("slurm"), run) == []


def test_a_job_is_named_by_its_number(fake: Path) -> None:
    (fake / "queue").write_text("4211|RUNNING|None|N/A\n")
    assert wanted("4211") == [Dependency("4211", "end")]
    (fake / "queue").write_text("")
    (fake / "accounting").write_text("4211|COMPLETED\n")
    assert wanted("4211") == []
    (fake / "accounting").write_text("")  # Slurm may know it all the same: it decides
    assert wanted("4211_3") == [Dependency("4211_3", "end")]


def test_what_nobody_can_wait_for(own_home: Path, fake: Path) -> None:
    with pytest.raises(MmlaunchError, match="no run 'nowhere'"):
        wanted("nowhere")
    a_run(own_home, "here-1120-aaaa", "70", executor="local")
    (problem,) = problems(Resources(after="here-1120-aaaa"), choose.named("slurm"), RunPaths(Path("/runs/own")))
    assert problem.dotted == "resources.after" and "runs by another scheduler (local)" in problem.what


def test_the_whole_way_to_sbatch(small: Path, own_home: Path, fake: Path) -> None:
    a_run(own_home, "sft-1121-bbbb", "71")
    (fake / "queue").write_text("71|RUNNING|None|N/A\n")
    options = ["-s", "resources.begin=now+2h", "-s", "resources.after=sft", "-s", "resources.partition=[a, b]"]
    done = mmlaunch("submit", small, *options, "--cluster", "slurm")
    assert done.returncode == 0, done.stderr
    assert "starts    not before now+2h; when sft has ended" in done.stdout and "partition a,b" in done.stdout
    assert "--dependency=afterany:71" in (fake / "called").read_text()
    run = next(path for path in (own_home / "runs").iterdir() if path.name.startswith("small-"))
    script = RunPaths(run).attempt(1).script.read_text()
    assert "#SBATCH --begin=now+7200\n" in script and "#SBATCH --partition=a,b\n" in script


def test_a_run_that_cannot_wait_leaves_nothing_behind(small: Path, own_home: Path, fake: Path) -> None:
    done = mmlaunch("submit", small, "-s", "resources.after=nowhere", "--cluster", "slurm")
    assert done.returncode == 2 and "resources.after: no run 'nowhere'" in done.stderr
    assert not (own_home / "runs").exists() and not (fake / "called").exists()


def test_a_sweep_waits_as_a_whole(small: Path, own_home: Path, fake: Path) -> None:
    a_run(own_home, "sft-1121-bbbb", "71")
    (fake / "queue").write_text("71|PENDING|Priority|N/A\n")
    options = ["-s", "resources.after=sft", "-s", "seed=1,2", "--sweep", "--cluster", "slurm"]
    assert mmlaunch("submit", small, *options).returncode == 0
    (line,) = (fake / "called").read_text().splitlines()
    assert "--dependency=afterany:71" in line and "--array=0-1" in line


@pytest.mark.parametrize("option", ["begin=22:00", "after=sft"])
def test_the_local_executor_cannot_wait(option: str, small: Path) -> None:
    for command in ("render", "submit"):
        done = mmlaunch(command, small, "-s", f"resources.{option}", "--cluster", "local")
        assert done.returncode == 2
        assert "the local executor starts a job at once: it cannot wait for" in done.stderr


def test_a_rehearsal_waits_for_nothing(small: Path) -> None:
    done = mmlaunch("submit", small, "-s", "resources.begin=22:00", "-s", "resources.after=x", "--toy", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "--begin" not in done.stdout


def test_render_writes_all_texts(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    done = mmlaunch("render", small, "--cluster", "local", "--to", folder)
    assert done.returncode == 0, done.stderr
    names = RunPaths(folder)
    files = [names.attempt(1).script.name, names.attempt(1).deepspeed.name, names.resolved.name]
    assert done.stdout.split() == [str(folder / name) for name in files]
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    for name, what in zip(files, ("script", "deepspeed", "recipe"), strict=True):
        assert (folder / name).read_text() == mmlaunch("render", small, "--cluster", "local", "--what", what).stdout
    assert os.access(folder / files[0], os.X_OK) and not os.access(folder / files[1], os.X_OK)
    again = mmlaunch("render", small, "--cluster", "local", "--to", folder)
    assert again.returncode == 2 and "exists already; choose another folder, or add --overwrite" in again.stderr
    assert mmlaunch("render", small, "--cluster", "local", "--to", folder, "--overwrite").returncode == 0
    both = mmlaunch("render", small, "--cluster", "local", "--to", folder, "--what", "script")
    assert both.returncode == 2 and "leave out --what" in both.stderr


def test_render_writes_the_stages_of_a_pipeline_apart(tmp_path: Path) -> None:
    done = mmlaunch("render", "recipes/quickstart_rlhf.yaml", "--cluster", "local", "--to", tmp_path / "all")
    assert done.returncode == 0, done.stderr
    folders = {path.parent.name for path in (tmp_path / "all").rglob("*.sh")}
    assert len(folders) > 1 and all((tmp_path / "all" / name / "deepspeed.json").is_file() for name in folders)
