"""The scheduler protocol: a third scheduler is one folder, one template and one profile, and no other line."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.runs import at_step, ended, mmlaunch, saved_at, wait_for

from mmlaunch.errors import MachineError, RecipeError, UserError
from mmlaunch.load import cluster as clusters
from mmlaunch.load.cluster import Cluster
from mmlaunch.recipe.check import section_of
from mmlaunch.run import ledger
from mmlaunch.run.ledger import Events
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose
from mmlaunch.schedulers.base import Array, Dependency

ROOT = Path(__file__).resolve().parents[3]
TOY = Path(__file__).parent / "toy"
LONG = ["-s", "steps=100000", "-s", "checkpoint.every=5", "-s", "log.every=1", "-s", "resources.tasks_per_node=1"]


@pytest.fixture
def toyland(tmp_path: Path, small: Path, stub_code: Path) -> Iterator[dict[str, str]]:
    """mmlaunch with one more folder in `schedulers`, one template beside the recipe, and one profile."""
    code, queue = tmp_path / "code", tmp_path / "queue"
    queue.mkdir()
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "launcher" / "mmlaunch", code / "mmlaunch", ignore=without)
    for data in ("templates", "recipes"):
        shutil.copytree(ROOT / data, code / "mmlaunch" / data, ignore=without)
    shutil.copytree(TOY, code / "mmlaunch" / "schedulers" / "toy", ignore=shutil.ignore_patterns("*.j2", "__pycache__"))
    shutil.copy(TOY / "toy.sh.j2", small.parent)
    profiles = clusters.config_folder() / "clusters"
    profiles.mkdir(parents=True)
    (profiles / "land.yaml").write_text("executor: toy\ncpus_per_rank: 1\n")
    yield {"PYTHONPATH": f"{code}:{stub_code}", "TOY_QUEUE": str(queue)}
    for job in queue.glob("*.json"):
        try:
            os.killpg(json.loads(job.read_text())["pid"], signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_another_scheduler_is_one_folder_one_template_one_profile(small: Path, toyland: dict[str, str]) -> None:
    queue = Path(toyland["TOY_QUEUE"])

    def command(*arguments: str | Path) -> str:
        done = mmlaunch(*arguments, **toyland)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status() -> dict[str, Any]:
        record: dict[str, Any] = json.loads(command("status", "--json", run.name))[0]
        return record

    (queue / "closed").touch()
    run = RunPaths(Path(json.loads(command("submit", small, *LONG, "--cluster", "land", "--json"))["directory"]))
    waiting = status()
    assert (waiting["state"], waiting["reason"]) == ("pending", "the toy queue is closed")
    assert waiting["next"] == "starts when the toy queue opens"
    (queue / "closed").unlink()
    events = wait_for(run, saved_at(6))
    assert [(e["job"], e["nodes"]) for e in events if e["event"] == "started"] == [("1", "toyland")]
    assert status()["state"] == "running"
    assert "cancelled; its newest checkpoint is step" in command("cancel", run.name)
    assert ledger.read(run.events).events[-1]["state"] == "cancelled"
    command("resume", run.name)
    wait_for(run, lambda events: at_step(6)(events) and events[-1]["event"] == "step" and events[-1]["attempt"] == 2)
    os.killpg(json.loads((queue / "2.json").read_text())["pid"], signal.SIGKILL)
    assert status()["reason"] == "its toy is broken" and "toy is broken" in command("why", run.name)
    assert "a toy queue in" in mmlaunch("doctor", **toyland).stdout
    assert json.loads(run.environment.read_text())["toy"] == "toy 1.0"
    assert mmlaunch("submit", small, "--cluster", "land", **toyland).returncode == 2, "a toy has one node"


@pytest.mark.usefixtures("stop_all")
def test_the_same_commands_without_the_toy_refuse_it(small: Path, own_home: Path) -> None:
    (small.parent / "land.yaml").write_text("description: a toy\nexecutor: slrum\n")
    with pytest.raises(RecipeError, match=r"land\.yaml:2:11: executor: there is no scheduler 'slrum'; did you mean sl"):
        choose.profile(str(small.parent / "land.yaml"))
    with pytest.raises(UserError, match="no scheduler 'toy'"):
        choose.of_run(Events(({"event": "submitted", "executor": "toy", "time": 1.0},)))
    run = RunPaths(own_home / "runs" / "toy-run")
    run.root.mkdir(parents=True)
    run.resolved.write_text("name: x\n")
    ledger.append(run.events, "submitted", executor="toy")
    ledger.append(run.events, "queued", job="1")
    (record,) = json.loads(mmlaunch("status", "--json").stdout)
    assert record["state"] == "unknown" and "no scheduler 'toy'" in record["reason"]


def test_every_scheduler_has_its_template_and_its_profile() -> None:
    assert choose.names() == ["slurm", "local"], "the one that runs everywhere comes last"
    for scheduler in choose.all_schedulers():
        assert (ROOT / "templates" / scheduler.template).is_file()
        assert (ROOT / "templates" / "clusters" / f"{scheduler.name}.yaml").is_file()
        assert choose.named(scheduler.name) is scheduler


def test_what_this_machine_cannot_do_is_refused(tmp_path: Path) -> None:
    local, run = choose.named("local"), RunPaths(tmp_path)
    with pytest.raises(MachineError, match="cannot wait for another one"):
        local.submit(run, tmp_path / "x.sh", 1, after=[Dependency("7")])
    with pytest.raises(MachineError, match="no job arrays"):
        local.submit(run, tmp_path / "x.sh", 1, array=Array(3))
    for refused in (local.hold, local.release):
        with pytest.raises(MachineError):
            refused({"job": "7"})


def test_a_plugin_belongs_to_its_scheduler() -> None:
    pyxis = {"kind": "pyxis", "image": "a"}
    assert section_of(Cluster, {"executor": "slurm", "container": pyxis}).container is not None
    with pytest.raises(RecipeError, match="pyxis is a plugin of srun; write kind: apptainer"):
        section_of(Cluster, {"executor": "local", "container": pyxis})


@pytest.mark.usefixtures("stop_all")
def test_a_local_job_is_found_by_its_script(small: Path, stub_code: Path) -> None:
    done = mmlaunch("submit", small, *LONG, "--cluster", "local", "--json", PYTHONPATH=str(stub_code))
    run, local = RunPaths(Path(json.loads(done.stdout)["directory"])), choose.named("local")
    events = wait_for(run, at_step(1))
    found = local.find(run)
    assert found and found["job"] == next(e["job"] for e in events if e["event"] == "queued")
    mmlaunch("cancel", "--now", run.name)
    assert ended(list(ledger.read(run.events))) and local.find(run) is None
