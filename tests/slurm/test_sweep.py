"""A sweep on a real cluster: one job array, a run directory for each point, each with its own restarts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
from tests.conftest import SubmitStub
from tests.runs import losses, mmlaunch, saved_at, submit, until, wait_for
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import BRISK, RESOURCES, UNBROKEN, finished, job_of

from mmlaunch.monitor import pipeline as monitor
from mmlaunch.run import ledger, pipeline
from mmlaunch.run.paths import RunPaths

ONE = RESOURCES.format(1).replace("nodes: 2", "nodes: 1")


def _rank_of(job: str) -> int:
    """The process of the only rank of a task of an array."""
    array, _, index = job.partition("_")
    for proc in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command, variables = (proc / "cmdline").read_bytes(), (proc / "environ").read_bytes().split(b"\0")
            own = {f"SLURM_ARRAY_JOB_ID={array}".encode(), f"SLURM_ARRAY_TASK_ID={index}".encode()} <= set(variables)
            if own and b"mmlaunch.schedulers.rank" in command and b"srun" not in command:
                return int(proc.name)
    raise AssertionError(f"no rank of job {job}")


@pytest.mark.nightly  # two minutes
def test_what_did_not_end_well_is_resumed_alone(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    """Of twelve points three are killed and two go back into the queue."""
    size = ["-s", ONE, *BRISK, "-s", "steps=300", "-s", "restarts.crash=0"]
    axes = ["-s", "optim.lr=1e-3,1e-2,1e-1", "-s", "seed=1..4", "--sweep", "--at-once", "8"]
    whole = submit_stub(small, *size, *axes, cluster="slurm")
    points = [stage.paths for stage in pipeline.read(whole).stages]
    jobs = [job_of(list(ledger.read(point.events))) for point in points]
    assert len(points) == 12 and {job.partition("_")[0] for job in jobs} == {jobs[0].partition("_")[0]}
    for number in (0, 1, 2):
        wait_for(points[number], saved_at(5), seconds=300)
        os.kill(_rank_of(jobs[number]), signal.SIGABRT)
    for number in (3, 4):
        wait_for(points[number], saved_at(5), seconds=300)
        slurm.run("scontrol", "requeue", jobs[number])
    until(lambda: monitor.of(whole).whole.state in ("failed", "done"), seconds=400)
    view = monitor.of(whole)
    told = [list(ledger.read(point.events))[-3:] for point in points[:3]]
    assert view.in_state("failed") == ["0", "1", "2"] and len(view.in_state("done")) == 9, told
    for number in (3, 4):
        assert ledger.read(points[number].events).last("requeued") is not None
    kept = {number: points[number].events.read_bytes() for number in range(3, 12)}
    assert mmlaunch("resume", whole.name).returncode == 0
    until(lambda: monitor.of(whole).whole.state == "done", seconds=300)
    assert all(points[number].events.read_bytes() == text for number, text in kept.items())
    assert all(losses(list(ledger.read(point.events))) == UNBROKEN for point in points)
    rows = json.loads(mmlaunch("table", whole.name, "--json").stdout)["rows"]
    assert len(rows) == 12 and {row["state"] for row in rows} == {"done"}


@pytest.mark.nightly  # two minutes
def test_the_best_points_of_a_rung_go_on(small: Path, slurm: SlurmCluster) -> None:
    """Successive halving without a process on the login node: the last point of a rung resumes the best ones."""
    size = ["-s", ONE, "-s", "data.workers=0", "-s", "checkpoint.best=eval/loss", "-s", "steps=8"]
    axes = ["-s", "optim.lr=1e-6,1e-4,1e-3,1e-2", "--sweep", "--halving", "2"]
    whole = submit(small, *size, *axes, cluster="slurm")
    until(lambda: monitor.of(whole).whole.state == "done" and max(steps_of(whole)) == 8, seconds=400)
    assert sorted(steps_of(whole)) == [2, 2, 4, 8]
    points = pipeline.read(whole).stages
    measured = [event for point in points for event in ledger.read(point.paths.events).all("evaluated")[:1]]
    losses_there = [event["metrics"]["eval/loss"] for event in measured]  # at the end of the first rung
    best = sorted(range(4), key=lambda number: losses_there[number])[:2]
    assert {number for number, steps in enumerate(steps_of(whole)) if steps > 2} == set(best)


def steps_of(whole: RunPaths) -> list[int]:
    """The last step of each point."""
    events = [ledger.read(point.paths.events).last("step") for point in pipeline.read(whole).stages]
    return [0 if event is None else int(event["step"]) for event in events]


@pytest.mark.nightly  # half a minute
def test_energy_is_that_of_all_attempts_where_the_site_counts_it(
    small: Path, slurm: SlurmCluster, submit_stub: SubmitStub
) -> None:
    """There is no meter here: what one would have counted is written where accounting keeps it."""
    run = submit_stub(small, "-s", ONE, *BRISK, "-s", "steps=300", cluster="slurm")
    slurm.run("scontrol", "requeue", job_of(wait_for(run, saved_at(5), seconds=300)))
    job = job_of(finished(run))
    assert mmlaunch("report", run.name, "--html").returncode == 0
    assert "kWh" not in (run.root / "report.html").read_text()
    unmeasured, energy = f"3={2**64 - 2}", "3=900000"  # joules
    change = f"SET tres_alloc = REPLACE(tres_alloc, '{unmeasured}', '{energy}') WHERE id_job = {job}"
    slurm.sql(f"UPDATE slurm_acct.{slurm.name}_job_table {change}")
    assert mmlaunch("report", run.name, "--html").returncode == 0
    assert "0.50 kWh" in (run.root / "report.html").read_text(), "of both attempts"
