"""A run has one owner: submissions at the same moment, jobs that come too late, and submissions without an answer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import SubmitStub
from tests.runs import at_step, losses, mmlaunch, saved_at, wait_for
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import LONG, PAIR, QUICK, UNBROKEN, finished, job_of, programs, ranks, status
from tests.stub_job import Fault, losses_of

from mmlaunch.run import ledger, owner
from mmlaunch.run.paths import RunPaths

AWAY = 'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1'
"""How squeue fails while the controller is away."""
SHORT = [*QUICK, "-s", "steps=40"]
UNCLEAR = {
    "accepts and then fails": 'REAL "$@" >/dev/null; echo "sbatch: error: Zero Bytes were transmitted" >&2; exit 1',
    "says nothing": 'REAL "$@" >/dev/null',
    "says too much": 'REAL "$@"; REAL --version; echo 1234567',
    "hangs": 'REAL "$@"; [ "$1" = --version ] || sleep 600',
}


def jobs_named(slurm: SlurmCluster, run: RunPaths) -> list[str]:
    return slurm.run("squeue", "--noheader", f"--name={run.name}", "--format=%i").split()


def test_of_ten_resumes_one_submits(
    small: Path, slurm: SlurmCluster, submit_stub: SubmitStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own profile file, and from inside an allocation whose variables would break the job."""
    profile = small.parent / "site.yaml"
    profile.write_text("sbatch: [--comment=mine]\n")
    for name, value in (("MEM_PER_CPU", "100"), ("MEM_PER_NODE", "200"), ("NTASKS", "7"), ("JOB_ID", "1")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    run = submit_stub(small, *LONG, cluster=str(profile))
    wait_for(run, at_step(3))
    assert "cancelled" in mmlaunch("cancel", "--now", run.name).stdout
    profile.unlink()

    command = [sys.executable, "-m", "mmlaunch", "resume", run.name]
    tries = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(10)]
    outputs = [one.communicate(timeout=120) for one in tries]
    assert sorted(one.returncode for one in tries) == [0] + [2] * 9, outputs
    refused = [error for (_, error), one in zip(outputs, tries, strict=True) if one.returncode]
    assert all("resumed by" in error or "cancel" in error for error in refused), refused
    events = ledger.read(run.events)
    assert len(events.all("submitted")) == len(events.all("queued")) == 2
    assert jobs_named(slurm, run) == [job_of(list(events))]
    wait_for(run, lambda events: sum(e["event"] == "started" for e in events) == 2)
    assert "--comment=mine" in run.attempt(2).script.read_text()
    mmlaunch("cancel", "--now", run.name)


def test_a_job_that_is_released_late_does_not_write(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    profile = small.parent / "held.yaml"
    profile.write_text("sbatch: [--hold]\n")
    run = submit_stub(small, *QUICK, cluster=str(profile))
    job = job_of(list(ledger.read(run.events)))
    assert owner.take(run, 2, by="somebody", host="login2")
    before = run.events.read_bytes()
    slurm.run("scontrol", "release", job)
    wait_until(lambda: job not in jobs_named(slurm, run))
    assert run.events.read_bytes() == before
    (log,) = run.batch_logs
    assert "was submitted again by somebody on login2" in log.read_text()
    assert not list(run.attempt(1).logs.iterdir())


def test_an_unconfirmed_submission_is_kept_and_found_again(
    small: Path, slurm: SlurmCluster, stub_code: Path, own_home: Path, tmp_path: Path
) -> None:
    """While squeue does not answer, the run is perhaps submitted; as soon as it does, its job is known."""
    deaf = programs(tmp_path / "deaf", squeue=AWAY)
    hog = slurm.run("sbatch", "--parsable", "-N4", "--exclusive", "--wrap", "sleep 300").strip()
    runs = []
    for number, (what, script) in enumerate(UNCLEAR.items()):
        path = programs(tmp_path / f"bin{number}", sbatch=script, squeue=AWAY)
        command = [sys.executable, "-m", "mmlaunch", "submit", str(small), *SHORT, "-s", f"name=doubt{number}"]
        process = subprocess.Popen(
            [*command, "--cluster", "slurm"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(stub_code)},
            start_new_session=True,
        )
        if what == "hangs":
            wait_until(lambda: "doubt3" in slurm.run("squeue", "--noheader", "--format=%j"))
            os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 4 and "is perhaps submitted: " in error, (what, error)
        (folder,) = (own_home / "runs").glob(f"doubt{number}-*")
        runs.append(RunPaths(folder))
    records = json.loads(mmlaunch("status", "--json", PATH=deaf).stdout)
    states = {record["run"]: record["state"] for record in records}
    assert set(states.values()) == {"perhaps submitted"}
    refused = mmlaunch("resume", runs[0].name, PATH=deaf)
    assert refused.returncode == 2 and "cancel" in refused.stderr
    assert [status(run)["state"] for run in runs] == ["pending"] * len(runs)
    slurm.run("scancel", hog)
    for run in runs:
        events = finished(run)
        assert events[-1]["state"] == "done" and losses(events) == losses_of(40)


def test_an_unconfirmed_submission_is_cancelled_honestly(
    small: Path, slurm: SlurmCluster, stub_code: Path, own_home: Path, tmp_path: Path
) -> None:
    """Slurm does not answer: the command says so. A job that starts after it ends before it writes anything."""
    (small.parent / "held.yaml").write_text("sbatch: [--hold]\n")
    path = programs(tmp_path / "bin", sbatch=UNCLEAR["says nothing"], squeue=AWAY)
    command = ["submit", str(small), *QUICK, "--cluster", str(small.parent / "held.yaml")]
    assert mmlaunch(*command, PATH=path, PYTHONPATH=str(stub_code)).returncode == 4
    run = RunPaths(next((own_home / "runs").glob("small-*")))
    unsure = mmlaunch("cancel", run.name, PATH=path)
    assert unsure.returncode == 4 and "it ends as soon as it starts" in unsure.stderr
    (job,) = jobs_named(slurm, run)
    slurm.run("scontrol", "release", job)
    wait_until(lambda: not jobs_named(slurm, run))
    events = ledger.read(run.events)
    assert [e["event"] for e in events] == ["submitted", "unconfirmed", "cancelling", "ended"]
    assert status(run)["state"] == "cancelled" and not list(run.attempt(1).logs.iterdir())


@pytest.mark.nightly  # a quarter of a minute
def test_scancel_of_ranks_that_do_not_listen(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    """Slurm kills the job script with them: only Slurm can say how the run ended."""
    run = submit_stub(small, *LONG, cluster="slurm", fault=Fault.DEAF)
    slurm.run("scancel", job_of(wait_for(run, at_step(3))))
    wait_until(lambda: status(run)["state"] not in ("running", "cancelling"))
    assert status(run)["state"] == "cancelled"
    assert "cancelled already" in mmlaunch("cancel", run.name).stdout


@pytest.mark.nightly  # `cancel --now` on this machine is tested in seconds
def test_cancel_writes_the_end_when_the_ranks_are_gone(small: Path, submit_stub: SubmitStub) -> None:
    run = submit_stub(small, *LONG, cluster="slurm", fault=Fault.DEAF)
    wait_for(run, at_step(3))
    assert "cancelled" in mmlaunch("cancel", "--now", run.name).stdout
    events = list(ledger.read(run.events))
    assert events[-1]["event"] == "ended" and not ranks(run)


@pytest.mark.nightly  # Slurm takes a minute
def test_the_controller_is_away_when_a_job_asks_for_its_requeue(
    small: Path, slurm: SlurmCluster, submit_stub: SubmitStub
) -> None:
    run = submit_stub(small, *PAIR, cluster="slurm")
    wait_for(run, saved_at(12))
    slurm.kill("slurmctld", signal.SIGTERM)  # it writes down its jobs
    try:
        os.kill(ranks(run)[0], signal.SIGUSR2)
        wait_until(lambda: "next try in 2 s" in run.batch_logs[0].read_text())
    finally:
        slurm.start_ctld()
    events = finished(run)
    assert events[-1]["state"] == "done" and losses(events) == UNBROKEN


def wait_until(true: Callable[[], bool], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.3)


def test_a_node_whose_daemon_dies_is_named_and_left_out(
    small: Path, slurm: SlurmCluster, submit_stub: SubmitStub
) -> None:
    """Its ranks live on, and save when Slurm ends the step: the node is the cause all the same."""
    run = submit_stub(small, *PAIR, cluster="slurm")
    wait_for(run, saved_at(12))
    slurm.kill("node2")
    slurm.run("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=killed")
    try:
        events = finished(run)
    finally:
        slurm.revive_node("node2")
    assert events[-1]["state"] == "done" and losses(events) == UNBROKEN
    assert [e["node"] for e in events if e["event"] == "excluded"] == ["node2"], events
    (failed,) = [e for e in events if e["event"] == "failed"]
    assert failed["cause"] == "node" and "node2" in failed["evidence"]


@pytest.mark.nightly  # three quarters of a minute; the policy's part of it is tested without Slurm
def test_a_node_whose_ranks_live_on_does_not_end_the_run(
    small: Path, slurm: SlurmCluster, submit_stub: SubmitStub
) -> None:
    """Its srun ends with 0, since it waits for the node no longer. The ranks there write nothing any more."""
    steps = 3000
    alone = [*PAIR, "-s", "resources.nodes=1", "-s", "resources.tasks_per_node=2", "-s", f"steps={steps}"]
    run = submit_stub(small, *alone, cluster="slurm")
    node = slurm.run("squeue", "-h", "-j", job_of(wait_for(run, saved_at(12))), "-o", "%B").strip()
    first = ranks(run)
    slurm.kill(node)
    slurm.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")
    try:
        events = finished(run)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in first.values()))
    finally:
        for pid in first.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        slurm.revive_node(node)
    assert events[-1]["state"] == "done" and losses(events) == losses_of(steps)
    assert [e["event"] for e in events].count("ended") == 1
    (failed,) = [e for e in events if e["event"] == "failed"]
    assert failed["cause"] == "node" and node in failed["evidence"]
    later = next(index for index, e in enumerate(events) if e["event"] == "started" and e["attempt"] == 2)
    assert not [e for e in events[later:] if e.get("attempt") == 1], "the first attempt has gone on writing"
