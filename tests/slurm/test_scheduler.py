"""What pipelines will need of Slurm: dependencies, arrays, hold and release, and finding a run's job."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.slurm.cluster import SlurmCluster

from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose
from mmlaunch.schedulers.base import Array, Dependency, Job, JobRecord, JobState
from mmlaunch.schedulers.slurm import queue

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --output={folder}/job/batch-%j.out
#SBATCH --nodes=1
#SBATCH --mem=10
#SBATCH --time=5
echo "$SLURM_ARRAY_TASK_ID" > {folder}/ran-"${{SLURM_ARRAY_TASK_ID:-alone}}"
sleep {seconds}
exit {code}
"""


@pytest.fixture(autouse=True)
def ask_every_time(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "look", queue.Queue(floor=0).look)


def script(folder: Path, name: str, seconds: float = 0, code: int = 0) -> tuple[RunPaths, Path]:
    run = RunPaths(folder / name)
    run.job.mkdir(parents=True)
    path = run.root / "script.sh"
    path.write_text(SCRIPT.format(name=name, folder=run.root, seconds=seconds, code=code))
    return run, path


def until(state: JobState, record: JobRecord, seconds: float = 60) -> Job:
    end = time.monotonic() + seconds
    while (job := choose.named("slurm").look([record])[0]).state != state and time.monotonic() < end:
        time.sleep(0.3)
    assert job.state == state, job
    return job


def test_a_job_waits_for_another_one(tmp_path: Path) -> None:
    slurm = choose.named("slurm")
    first_run, first_script = script(tmp_path, "first", seconds=4)
    first = slurm.submit(first_run, first_script, 1)
    second_run, second_script = script(tmp_path, "second")
    second = slurm.submit(second_run, second_script, 1, after=[Dependency(first["job"])])
    assert until(JobState.WAITING, second).reason.startswith("Dependency")
    assert slurm.find(first_run) == {"job": first["job"]} and slurm.find(second_run) == {"job": second["job"]}
    until(JobState.OVER, second)
    assert (second_run.root / "ran-alone").exists()


def test_a_dependency_that_fails_needs_a_human(tmp_path: Path) -> None:
    slurm = choose.named("slurm")
    first = slurm.submit(*script(tmp_path, "bad", code=3), 1)
    second = slurm.submit(*script(tmp_path, "never"), 1, after=[Dependency(first["job"])])
    assert "what it depends on failed" in until(JobState.STUCK, second).reason
    slurm.cancel(second)
    until(JobState.OVER, second)


def test_an_array_has_a_job_for_each_task(tmp_path: Path) -> None:
    slurm = choose.named("slurm")
    run, path = script(tmp_path, "many")
    record = slurm.submit(run, path, 1, array=Array(3, at_once=2))
    assert record["tasks"] == 3
    tasks = [{"job": f"{record['job']}_{index}"} for index in range(3)]
    for task in tasks:
        until(JobState.OVER, task)
    assert {path.name for path in run.root.glob("ran-*")} == {"ran-0", "ran-1", "ran-2"}


def test_hold_and_release(tmp_path: Path, slurm: SlurmCluster) -> None:
    slurm.run("sbatch", "--parsable", "-N4", "--exclusive", "--wrap", "sleep 6")
    scheduler = choose.named("slurm")
    record = scheduler.submit(*script(tmp_path, "patient"), 1)
    scheduler.hold(record)
    assert f"scontrol release {record['job']}" in until(JobState.STUCK, record).reason
    scheduler.release(record)
    until(JobState.OVER, record)
