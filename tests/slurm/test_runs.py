"""Runs on a real cluster: several nodes, the queue, requeues by Slurm and by a human, cancel."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.runs import at_step, ended, losses, mmlaunch, submit, wait_for
from tests.slurm.cluster import SlurmCluster

from mmlaunch.run import manifest
from mmlaunch.run.ledger import Event
from mmlaunch.run.paths import RunPaths

RESOURCES = "{nodes: 2, gpus_per_node: 0, tasks_per_node: 2, cpus_per_rank: 1, memory: 1G, time: 10m}"
TWO_BY_TWO = ["-s", f"resources={RESOURCES}", "-s", "log.every=1", "-s", "checkpoint.every=5", "-s", "data.workers=0"]
LONG = [*TWO_BY_TWO, "-s", "steps=100000"]


@pytest.fixture(autouse=True)
def empty_queue(slurm: SlurmCluster) -> Iterator[None]:
    """No job of a test outlives it."""
    yield
    slurm.run("scancel", "--user=root", check=False)


def status(run: RunPaths) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(mmlaunch("status", "--json", run.name).stdout)[0]
    return record


def job_of(events: list[Event]) -> str:
    return str(next(e for e in events if e["event"] == "queued")["job"])


def test_two_nodes_with_two_ranks_each(small: Path, slurm: SlurmCluster) -> None:
    rendered = mmlaunch("render", "--cluster", "slurm", small, *TWO_BY_TWO)
    run = submit(small, *TWO_BY_TWO, cluster="slurm")
    events = wait_for(run, ended)
    assert events[-1]["state"] == "done"
    assert run.attempt(1).script.read_text() == rendered.stdout
    assert next(e for e in events if e["event"] == "ready")["world"] == 4
    assert len(list(run.attempt(1).logs.glob("rank-*.out"))) == 4
    assert (status(run)["state"], status(run)["step"]) == ("done", 4)
    nodes = slurm.run("sacct", "-X", "-n", "-P", "-j", job_of(events), "-o", "NNodes,NTasks%9,ReqCPUS")
    assert nodes.startswith("2|")
    local = submit(small, *TWO_BY_TWO, "-s", "resources={nodes: 1, gpus_per_node: 0, tasks_per_node: 4}")
    assert losses(wait_for(local, ended)) == losses(events)  # four ranks are four ranks, wherever they run


def test_requeued_by_a_human(small: Path, slurm: SlurmCluster) -> None:
    options = [*TWO_BY_TWO, "-s", "steps=300", "-s", "model.dropout=0.1"]
    expected = losses(wait_for(submit(small, *options, cluster="slurm"), ended))
    run = submit(small, *options, cluster="slurm")
    events = wait_for(run, at_step(12))
    slurm.run("scontrol", "requeue", job_of(events))
    events = wait_for(run, ended, seconds=120)
    assert events[-1]["state"] == "done" and losses(events) == expected
    kinds = [e["event"] for e in events if e["event"] in ("requeued", "resumed", "failed")]
    assert kinds == ["requeued", "resumed"]
    assert next(e for e in events if e["event"] == "requeued")["cause"] in ("preempted", "saved")


def test_the_time_limit_costs_nothing(small: Path, slurm: SlurmCluster) -> None:
    """The warning comes up to a minute early: with a lead of 100 s in a limit of 2 min, the first attempt is short."""
    profile = small.parent / "brisk.yaml"
    profile.write_text("signal: {lead: 100s}\n")
    run = submit(small, *LONG, "-s", "resources.time=2m", cluster=str(profile))
    events = wait_for(run, lambda events: any(e["event"] == "resumed" for e in events), seconds=150)
    assert next(e for e in events if e["event"] == "requeued")["cause"] == "saved"
    saved = [e["step"] for e in events if e["event"] == "checkpoint" and e.get("step")]
    assert next(e for e in events if e["event"] == "resumed")["step"] == saved[-1]
    mmlaunch("cancel", "--now", run.name)


def test_cancel_while_running_saves_first(small: Path) -> None:
    run = submit(small, *LONG, cluster="slurm")
    wait_for(run, at_step(3))
    assert status(run)["state"] == "running"
    done = mmlaunch("cancel", run.name)
    assert done.returncode == 0 and "cancelled; its newest checkpoint is step" in done.stdout
    events = wait_for(run, ended)
    assert events[-1]["state"] == "cancelled" and sum(e["event"] == "ended" for e in events) == 1
    assert manifest.newest(run.checkpoints)[0] is not None and status(run)["state"] == "cancelled"


def test_cancel_while_pending(small: Path, slurm: SlurmCluster) -> None:
    hog = slurm.run("sbatch", "--parsable", "-N4", "--exclusive", "--wrap", "sleep 300").strip()
    run = submit(small, *TWO_BY_TWO, cluster="slurm")
    waiting = status(run)
    assert waiting["state"] == "pending" and waiting["reason"].startswith(("Resources", "Priority", "None"))
    assert mmlaunch("cancel", run.name).returncode == 0
    assert status(run)["state"] == "cancelled"
    queued = slurm.run("squeue", "-h", "-t", "pending,running", "-o", "%i").split()
    assert queued == [hog]


def test_what_a_human_must_do(small: Path, slurm: SlurmCluster) -> None:
    slurm.run("sbatch", "--parsable", "-N4", "--exclusive", "--wrap", "sleep 300")
    run = submit(small, *TWO_BY_TWO, cluster="slurm")
    job = str(json.loads(run.events.read_text().splitlines()[1])["job"])
    slurm.run("scontrol", "uhold", job)
    held = status(run)
    assert held["state"] == "held" and f"scontrol release {job}" in held["reason"]


def test_a_refused_job_leaves_no_run(small: Path, own_home: Path) -> None:
    done = mmlaunch("submit", "--cluster", "slurm", small, *TWO_BY_TWO, "-s", "resources.partition=nowhere")
    assert (done.returncode == 4 and "nowhere" in done.stderr + done.stdout) or "partition" in done.stderr
    assert list((own_home / "runs").glob("*")) == []


def tampered(small: Path, text: str) -> RunPaths:
    """A run whose code snapshot was changed before its ranks started: a way to make real ranks fail on purpose."""
    run = submit(small, *TWO_BY_TWO, cluster="slurm")
    loop = run.code / "mmjobs" / "train" / "loop.py"
    loop.write_text(loop.read_text().replace("    def run(self) -> dict[str, Any]:\n", text, 1))
    return run


CRASH = """    def run(self) -> dict[str, Any]:
        raise ValueError("always the same")

    def _run(self) -> dict[str, Any]:
"""
MEMORY = """    def run(self) -> dict[str, Any]:
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.10 GiB")

    def _run(self) -> dict[str, Any]:
"""


def test_a_deterministic_crash_costs_two_attempts(small: Path) -> None:
    run = tampered(small, CRASH)
    events = wait_for(run, ended)
    assert sum(e["event"] == "started" for e in events) <= 2
    assert events[-1]["state"] == "failed" and "same way twice" in events[-1]["reason"]
    story = json.loads(mmlaunch("why", "--json", run.name).stdout)
    assert "ValueError: always the same" in story["evidence"] and story["place"].startswith("attempts/2/logs/rank-")


def test_out_of_memory_costs_one_attempt(small: Path) -> None:
    run = tampered(small, MEMORY)
    events = wait_for(run, ended)
    assert sum(e["event"] == "started" for e in events) == 1
    assert events[-1]["cause"] == "out of memory" and events[-1]["state"] == "failed"


def test_a_bad_recipe_found_in_the_job_costs_one_attempt(small: Path, slurm: SlurmCluster) -> None:
    run = submit(small, *TWO_BY_TWO, cluster="slurm")
    run.resolved.chmod(0o644)
    run.resolved.write_text(run.resolved.read_text().replace("method: sft", "method: stf"))
    events = wait_for(run, ended)
    assert sum(e["event"] == "started" for e in events) == 1 and events[-1]["exit_code"] == 94


def test_a_killed_rank_is_restarted(small: Path) -> None:
    run = submit(small, *TWO_BY_TWO, "-s", "steps=300", cluster="slurm")
    wait_for(run, at_step(12))
    pid = next(p for p in _ranks(run) if b"SLURM_PROCID=3" in (Path("/proc") / str(p) / "environ").read_bytes())
    os.kill(pid, signal.SIGKILL)
    events = wait_for(run, ended, seconds=120)
    assert events[-1]["state"] == "done"
    assert next(e for e in events if e["event"] == "requeued")["cause"] == "crash"
    assert any(e["event"] == "resumed" for e in events)


def _ranks(run: RunPaths) -> list[int]:
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (proc / "cmdline").read_bytes()
            if b"submitit.core._submit" in command and str(run.job).encode() in command and b"srun" not in command:
                found.append(int(proc.name))
    return found


def test_preempted_by_a_higher_partition(small: Path, slurm: SlurmCluster) -> None:
    options = [*TWO_BY_TWO, "-s", "steps=300", "-s", "restarts.crash=0"]
    expected = losses(wait_for(submit(small, *options, cluster="slurm"), ended))
    run = submit(small, *options, cluster="slurm")
    wait_for(run, at_step(12))
    slurm.run("sbatch", "-p", "urgent", "-N4", "--exclusive", "--wrap", "sleep 3")
    events = wait_for(run, ended, seconds=150)
    assert events[-1]["state"] == "done" and losses(events) == expected
    assert [e["cause"] for e in events if e["event"] == "requeued"] in (["preempted"], ["saved"])


def test_a_node_that_dies(small: Path, slurm: SlurmCluster) -> None:
    run = submit(small, *LONG, cluster="slurm")
    wait_for(run, at_step(7))
    job = job_of(wait_for(run, at_step(7)))
    node = slurm.run("squeue", "-h", "-j", job, "-o", "%B").strip()
    slurm.kill(node)
    for pid in _ranks(run):
        os.kill(pid, signal.SIGKILL)
    slurm.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")
    try:
        events = wait_for(run, lambda events: any(e["event"] == "resumed" for e in events), seconds=120)
        assert sum(e["event"] == "started" for e in events) >= 2
        mmlaunch("cancel", "--now", run.name)
    finally:
        slurm.start_node(int(node.removeprefix("node")))
        slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)


def test_the_daemons_may_go_and_come_back(small: Path, slurm: SlurmCluster) -> None:
    run = submit(small, *LONG, cluster="slurm")
    wait_for(run, at_step(3))
    slurm.kill("slurmdbd")
    slurm.kill("slurmctld")
    assert status(run)["state"] in ("running", "unknown")  # never over
    slurm.start_ctld()
    assert status(run)["state"] == "running"
    slurm.start_dbd()
    assert status(run)["state"] == "running"
    assert mmlaunch("cancel", run.name).returncode == 0
    assert status(run)["state"] == "cancelled"


def test_a_rank_that_hangs(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAUNCH_HANG_SECONDS", "20")
    run = submit(small, *TWO_BY_TWO, "-s", "steps=400", cluster="slurm")
    wait_for(run, at_step(12))
    pid = next(p for p in _ranks(run) if b"SLURM_PROCID=1" in (Path("/proc") / str(p) / "environ").read_bytes())
    os.kill(pid, signal.SIGSTOP)
    events = wait_for(run, ended, seconds=180)
    assert events[-1]["state"] == "done"
    assert [e["cause"] for e in events if e["event"] == "requeued"] == ["hang"]
    assert list(run.attempt(1).stacks.glob("rank-*.txt"))


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
    done = mmlaunch("status", "--json", PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    states = [one["state"] for one in json.loads(done.stdout)]
    assert (states.count("held"), states.count("unknown"), len(states)) == (200, 1, 201)
    assert sorted(counts.read_text().split()) == ["sacct", "squeue"]


def test_a_job_that_was_accepted_is_not_submitted_twice(small: Path, slurm: SlurmCluster, tmp_path: Path) -> None:
    """sbatch may time out after the controller has taken the job."""
    shim = tmp_path / "bin" / "sbatch"
    shim.parent.mkdir()
    real = shutil.which("sbatch")
    shim.write_text(f'#!/bin/bash\n{real} "$@" >/dev/null\necho "sbatch: error: Socket timed out" >&2\nexit 1\n')
    shim.chmod(0o755)
    run = submit(small, *TWO_BY_TWO, cluster="slurm", PATH=f"{shim.parent}:{os.environ['PATH']}")
    assert len(slurm.run("squeue", "-h", f"--name={run.name}").splitlines()) == 1
    assert wait_for(run, ended)[-1]["state"] == "done"


def test_an_unfit_node_is_left_out(small: Path, slurm: SlurmCluster) -> None:
    """The preflight's answer on one node is changed in the run's snapshot: the run goes on without that node only."""
    run = submit(small, *TWO_BY_TWO, cluster="slurm")
    preflight = run.code / "mmjobs" / "preflight.py"
    head = "def _folders(paths: RunPaths) -> str | None:\n"
    assert head in preflight.read_text()
    sick = head + '    if node() == "node1":\n        return "it is sick today"\n'
    preflight.write_text(preflight.read_text().replace(head, sick))
    events = wait_for(run, ended, seconds=150)
    assert events[-1]["state"] == "done"
    assert [e["node"] for e in events if e["event"] == "excluded"] == ["node1"]
    failed = next(e for e in events if e["event"] == "failed")
    assert failed["cause"] == "node" and "node node1: it is sick today" in failed["evidence"]
    queued = [e for e in events if e["event"] == "queued"]
    assert len(queued) == 2 and queued[1]["excluded"] == ["node1"] and queued[0]["job"] != queued[1]["job"]
    assert "node1" not in events[-1].get("nodes", "") and status(run)["state"] == "done"
