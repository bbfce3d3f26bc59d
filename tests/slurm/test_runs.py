"""Runs on a real cluster: several nodes, the queue, requeues by Slurm and by a human, cancel."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.conftest import SubmitStub
from tests.runs import at_step, before_the_resume, losses, mmlaunch, saved_at, wait_for
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import (
    LONG,
    PAIR,
    QUICK,
    TWO_BY_TWO,
    UNBROKEN,
    finished,
    job_of,
    programs,
    ranks,
    requeues,
    status,
)  # fmt: skip
from tests.stub_job import Fault

from mmlaunch.cli import follow
from mmlaunch.monitor import watch
from mmlaunch.run import manifest
from mmlaunch.schedulers.slurm.queue import FLOOR


@pytest.mark.nightly  # half a minute; the same path as a preemption
def test_requeued_by_a_human(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    run = submit_stub(small, *PAIR, cluster="slurm")
    slurm.run("scontrol", "requeue", job_of(wait_for(run, saved_at(12))))
    events = finished(run)
    assert events[-1]["state"] == "done" and losses(events) == UNBROKEN
    assert [e["event"] for e in events if e["event"] in ("requeued", "resumed", "failed")] == ["requeued", "resumed"]
    assert requeues(events)[0] in ("preempted", "saved")


def test_the_time_limit_costs_nothing(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    """The warning comes up to half a minute early: with a lead of 40 s in a limit of 1 min, within 20 s."""
    profile = small.parent / "brisk.yaml"
    profile.write_text("signal: {lead: 40s}\n")
    run = submit_stub(small, *LONG, "-s", "resources.time=1m", cluster=str(profile))
    events = wait_for(run, lambda events: any(e["event"] == "resumed" for e in events), seconds=300)
    causes = requeues(events)
    story = [e for e in events if e["event"] in ("signal", "failed", "requeued", "resumed")]
    assert "saved" in causes and set(causes) <= {"saved", "time limit"}, story  # the latter: before Python has begun
    step, saved, done = before_the_resume(events)
    assert step == saved[-1] == done[-1]
    mmlaunch("cancel", "--now", run.name)


def test_cancel_while_running_saves_first(small: Path, submit_stub: SubmitStub) -> None:
    run = submit_stub(small, *LONG, cluster="slurm")
    wait_for(run, at_step(3))
    assert status(run)["state"] == "running"
    done = mmlaunch("cancel", run.name)
    assert done.returncode == 0 and "cancelled; its newest checkpoint is step" in done.stdout
    events = finished(run)
    assert events[-1]["state"] == "cancelled" and sum(e["event"] == "ended" for e in events) == 1
    assert manifest.newest(run.checkpoints)[0] is not None and status(run)["state"] == "cancelled"


@pytest.mark.parametrize("accounting", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_scancel_is_a_cancel(
    small: Path, slurm: SlurmCluster, submit_stub: SubmitStub, tmp_path: Path, accounting: bool
) -> None:
    """The ranks save as they do for a preemption, but nobody wants the run back. The job's own output says so too."""
    path = os.environ["PATH"] if accounting else programs(tmp_path / "bin", sacct="exit 1")
    run = submit_stub(small, *LONG, cluster="slurm", PATH=path)
    slurm.run("scancel", job_of(wait_for(run, at_step(3))))
    ending = finished(run)[-1]
    assert (ending["state"], ending["reason"]) == ("cancelled", "cancelled with scancel")
    assert manifest.newest(run.checkpoints)[0] is not None and status(run)["state"] == "cancelled"


def test_cancel_while_pending(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    hog = slurm.run("sbatch", "--parsable", "-N4", "--exclusive", "--wrap", "sleep 300").strip()
    run = submit_stub(small, *QUICK, cluster="slurm")
    waiting = status(run)
    assert waiting["state"] == "pending" and waiting["reason"].startswith(("Resources", "Priority", "None"))
    assert mmlaunch("cancel", run.name).returncode == 0
    assert status(run)["state"] == "cancelled"
    queued = slurm.run("squeue", "-h", "-t", "pending,running", "-o", "%i").split()
    assert queued == [hog]


def test_what_a_human_must_do(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    slurm.run("sbatch", "--parsable", "-N4", "--exclusive", "--wrap", "sleep 300")
    run = submit_stub(small, *QUICK, cluster="slurm")
    job = str(json.loads(run.events.read_text().splitlines()[1])["job"])
    slurm.run("scontrol", "uhold", job)
    held = status(run)
    assert held["state"] == "held" and f"scontrol release {job}" in held["reason"]
    followed = next(event for event in watch.events(run) if event and event["event"] == "held")
    assert f"scontrol release {job}" in follow.describe_event(followed)
    slurm.run("scancel", job)
    ended = status(run)
    assert (ended["state"], ended["reason"]) == ("cancelled", "cancelled with scancel")


def test_a_refused_job_leaves_no_run(small: Path, own_home: Path) -> None:
    done = mmlaunch("submit", "--cluster", "slurm", small, *TWO_BY_TWO, "-s", "resources.partition=nowhere")
    assert (done.returncode == 4 and "nowhere" in done.stderr + done.stdout) or "partition" in done.stderr
    assert list((own_home / "runs").glob("*")) == []


def test_a_deterministic_crash_costs_two_attempts(small: Path, submit_stub: SubmitStub) -> None:
    run = submit_stub(small, *PAIR, "-s", "restarts.crash=5", cluster="slurm", fault=Fault.RAISE)
    events = finished(run)
    assert sum(e["event"] == "started" for e in events) <= 2
    assert events[-1]["state"] == "failed" and "same way twice" in events[-1]["reason"]
    story = json.loads(mmlaunch("why", "--json", run.name).stdout)
    assert "RuntimeError: always the same" in story["evidence"] and story["place"].startswith("attempts/2/logs/rank-")


@pytest.mark.nightly  # half a minute, mostly of waiting
def test_the_pause_before_a_restart(small: Path, submit_stub: SubmitStub) -> None:
    """The second restart for one cause waits in the queue, not on the nodes; Slurm's own delay is 6 s here."""
    budget = ["-s", "restarts={crash: 2, backoff: 15s}"]
    run = submit_stub(small, *PAIR, *budget, cluster="slurm", fault=Fault.KILLED)
    wait_for(run, lambda events: len(requeues(events)) == 2)
    until = time.monotonic() + 12
    while (waiting := status(run))["state"] == "restarting" and time.monotonic() < until:
        time.sleep(0.3)  # the ledger tells it before Slurm does
    assert waiting["state"] == "pending" and waiting["reason"].startswith("BeginTime, estimated start ")
    events = finished(run)
    told = [e for e in events if e["event"] == "requeued"]
    started = [e["time"] for e in events if e["event"] == "started"]
    assert [e["pause"] for e in told] == [0, 15] and len(started) == 3
    assert started[1] - told[0]["time"] < 15 <= started[2] - told[1]["time"]
    assert events[-1]["state"] == "failed" and "restarts.crash: 2" in events[-1]["reason"]


def test_out_of_memory_costs_one_attempt(small: Path, submit_stub: SubmitStub) -> None:
    run = submit_stub(small, *PAIR, cluster="slurm", fault=Fault.OUT_OF_MEMORY)
    events = finished(run)
    assert sum(e["event"] == "started" for e in events) == 1
    assert events[-1]["cause"] == "out of memory" and events[-1]["state"] == "failed"


def test_a_bad_recipe_found_in_the_job_costs_one_attempt(
    small: Path, slurm: SlurmCluster, submit_stub: SubmitStub
) -> None:
    hog = slurm.run("sbatch", "--parsable", "-N4", "--exclusive", "--wrap", "sleep 300").strip()
    run = submit_stub(small, *QUICK, cluster="slurm")
    run.resolved.chmod(0o644)
    run.resolved.write_text(run.resolved.read_text().replace("method: sft", "method: stf"))
    slurm.run("scancel", hog)
    events = finished(run)
    assert sum(e["event"] == "started" for e in events) == 1 and events[-1]["exit_code"] == 94


def test_a_killed_rank_is_restarted_in_the_same_job(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    run = submit_stub(small, *PAIR, "-s", "restarts.crash=1", cluster="slurm")
    wait_for(run, saved_at(12))
    os.kill(ranks(run)[1], signal.SIGKILL)
    events = finished(run)
    assert events[-1]["state"] == "done" and losses(events) == UNBROKEN
    assert requeues(events) == ["crash"] and any(e["event"] == "resumed" for e in events)
    failed = next(e for e in events if e["event"] == "failed")["evidence"]
    assert failed.startswith("a rank was killed (signal 9)") and "; task 1 on node" in failed
    assert [e["in_job"] for e in events if e["event"] == "requeued"] == [True]
    assert len({e["job"] for e in events if e["event"] == "started"}) == 1
    assert "Restarts=0" in slurm.run("scontrol", "show", "job", job_of(events)), "it never went back into the queue"


@pytest.mark.nightly
def test_a_job_whose_node_leaves_service_goes_through_the_queue(
    small: Path, slurm: SlurmCluster, submit_stub: SubmitStub
) -> None:
    run = submit_stub(small, *PAIR, "-s", "restarts.crash=1", cluster="slurm")
    events = wait_for(run, saved_at(12))
    node = next(e["nodes"] for e in events if e["event"] == "started").replace("[", "").split("-")[0].split(",")[0]
    slurm.run("scontrol", "update", f"NodeName={node}", "State=drain", "Reason=test")
    try:
        os.kill(ranks(run)[1], signal.SIGKILL)
        events = finished(run)
    finally:
        slurm.run("scontrol", "update", f"NodeName={node}", "State=resume")
    assert events[-1]["state"] == "done" and losses(events) == UNBROKEN
    assert requeues(events) == ["crash"] and not any(e.get("in_job") for e in events)
    assert node not in [e["nodes"] for e in events if e["event"] == "started"][1]


@pytest.mark.nightly  # half a minute, mostly of waiting
def test_the_daemons_may_go_and_come_back(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    run = submit_stub(small, *LONG, cluster="slurm")
    wait_for(run, at_step(3))
    slurm.kill(
        "slurmctld", signal.SIGTERM
    )  # it leaves its state behind: without, it does not start while slurmdbd is down
    slurm.kill("slurmdbd")
    assert status(run)["state"] in ("running", "unknown")  # never over
    slurm.start_ctld()
    assert status(run)["state"] == "running"
    slurm.start_dbd()
    assert status(run)["state"] == "running"
    assert mmlaunch("cancel", run.name).returncode == 0
    assert status(run)["state"] == "cancelled"


@pytest.mark.nightly  # half a minute, mostly of waiting
def test_a_rank_that_hangs(small: Path, monkeypatch: pytest.MonkeyPatch, submit_stub: SubmitStub) -> None:
    monkeypatch.setenv("MMLAUNCH_HANG_SECONDS", "14")  # rank 0 must outlive what the policy calls frozen
    run = submit_stub(small, *PAIR, "-s", "checkpoint.every=300", cluster="slurm")  # always in a step
    heartbeat = run.attempt(1).heartbeats / "rank-1.json"
    wait_for(run, lambda _: heartbeat.exists() and '"training"' in heartbeat.read_text())
    os.kill(ranks(run)[1], signal.SIGSTOP)
    events = finished(run)
    assert events[-1]["state"] == "done"
    assert requeues(events) == ["hang"]
    assert "; rank 1 stopped first (training" in next(e for e in events if e["event"] == "failed")["evidence"]
    assert list(run.attempt(1).stacks.glob("rank-*.txt"))
    logs = mmlaunch("logs", run.name, "--attempt", "1").stdout
    assert re.search(r"\[srun\] srun: error: node\d: task 0: Exited with exit code 92", logs), logs


@pytest.mark.nightly  # a quarter of a minute
def test_two_hundred_runs_are_one_question(slurm: SlurmCluster, own_home: Path, tmp_path: Path) -> None:
    """Slurm's administrators count the questions: one squeue for all runs, one sacct for those that left the queue."""
    loop = "for i in $(seq 200); do sbatch --parsable --hold --wrap true --output=/dev/null; done"
    jobs = slurm.run("bash", "-c", loop, timeout=120).split()
    for number, job in enumerate([*jobs, "999999"]):
        run = own_home / "runs" / f"run-{number:03d}"
        run.mkdir(parents=True)
        (run / "recipe.resolved.yaml").write_text("name: run\n")
        events = [{"event": "submitted", "executor": "slurm"}, {"event": "queued", "job": job}]
        (run / "events.jsonl").write_text("".join(json.dumps({"time": 1.0, **event}) + "\n" for event in events))
    counts = tmp_path / "counts"
    for program in ("squeue", "sacct", "scontrol"):
        shim = tmp_path / "bin" / program
        shim.parent.mkdir(exist_ok=True)
        real = shutil.which(program)
        shim.write_text(f'#!/bin/bash\necho {program} >> {counts}\nexec {real} "$@"\n')
        shim.chmod(0o755)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    states = [one["state"] for one in json.loads(mmlaunch("status", "--json", PATH=path).stdout)]
    assert (states.count("held"), states.count("unknown"), len(states)) == (200, 1, 201)
    assert sorted(counts.read_text().split()) == ["sacct", "squeue"]

    counts.unlink()
    command = [sys.executable, "-m", "mmlaunch", "status", "--watch"]
    with (tmp_path / "screen").open("w") as screen:
        watching = subprocess.Popen(command, stdout=screen, env={**os.environ, "PATH": path})
    with contextlib.suppress(subprocess.TimeoutExpired):
        watching.wait(FLOOR + 3)
    watching.kill()
    assert watching.wait() == -signal.SIGKILL and (tmp_path / "screen").read_text().count("loss") >= 4  # refreshes
    assert sorted(counts.read_text().split()) == ["sacct", "sacct", "squeue", "squeue"]


def test_a_job_that_was_accepted_is_not_submitted_twice(
    small: Path, slurm: SlurmCluster, tmp_path: Path, submit_stub: SubmitStub
) -> None:
    """sbatch may time out after the controller has taken the job."""
    shim = tmp_path / "bin" / "sbatch"
    shim.parent.mkdir()
    real = shutil.which("sbatch")
    shim.write_text(f'#!/bin/bash\n{real} "$@" >/dev/null\necho "sbatch: error: Socket timed out" >&2\nexit 1\n')
    shim.chmod(0o755)
    run = submit_stub(small, *QUICK, cluster="slurm", PATH=f"{shim.parent}:{os.environ['PATH']}")
    assert len(slurm.run("squeue", "-h", f"--name={run.name}").splitlines()) == 1
    assert finished(run)[-1]["state"] == "done"


def test_an_unfit_node_is_left_out(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    """The run goes on without that node only."""
    run = submit_stub(small, *QUICK, cluster="slurm", fault=Fault.SICK_NODE)
    events = finished(run)
    assert events[-1]["state"] == "done"
    assert [e["node"] for e in events if e["event"] == "excluded"] == ["node1"]
    failed = next(e for e in events if e["event"] == "failed")
    assert failed["cause"] == "node" and "node node1: it is sick today" in failed["evidence"]
    queued = [e for e in events if e["event"] == "queued"]
    assert len(queued) == 2 and queued[1]["excluded"] == ["node1"] and queued[0]["job"] != queued[1]["job"]
    assert "node1" not in events[-1].get("nodes", "") and status(run)["state"] == "done"


def test_more_steps_on_other_resources(small: Path, submit_stub: SubmitStub) -> None:
    run = submit_stub(small, *TWO_BY_TWO, cluster="slurm")
    assert [e["world"] for e in finished(run) if e["event"] == "ready"] == [4]
    done = mmlaunch("resume", run.name, "-s", "steps=8", "-s", "resources.nodes=1")
    assert done.returncode == 0 and "2 ranks" in done.stdout
    events = wait_for(run, lambda events: sum(e["event"] == "ended" for e in events) == 2)
    assert [e["world"] for e in events if e["event"] == "ready"] == [4, 2]
    assert next(e for e in events if e["event"] == "resumed")["step"] == 4
    assert sorted(losses(events)) == list(range(1, 9)) and events[-1]["state"] == "done"
    assert (status(run)["state"], status(run)["step"]) == ("done", 8)
