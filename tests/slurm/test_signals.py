"""How an attempt is told to end, in every shape that a site may give it: all ranks save together and go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tests.conftest import SubmitStub
from tests.runs import losses, mmlaunch, saved_at, wait_for
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import LONG, PAIR, UNBROKEN, check_nothing_lost, finished, job_of, ranks, requeues
from tests.stub_job import Fault

from mmlaunch.run import ledger


def test_only_the_task_of_one_rank(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    """As proctrack/cgroup does it: no other process of the step is told. One rank is enough, they all agree."""
    run = submit_stub(small, *PAIR, cluster="slurm")
    events = wait_for(run, saved_at(12))
    tasks = slurm.run("scontrol", "listpids", f"{job_of(events)}.0", "node2").splitlines()[1:]
    pids = [int(line.split()[0]) for line in tasks if line.split()[4] == "1"]  # GlobalID; a child of a task has none
    assert pids == [ranks(run)[1]]  # no shell or starter in between
    os.kill(pids[0], signal.SIGUSR2)
    check_nothing_lost(finished(run), UNBROKEN, "saved")


def test_only_the_batch_shell(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    """As `--signal=B:` does it: the script passes it on."""
    run = submit_stub(small, *PAIR, cluster="slurm")
    slurm.run("scancel", "--batch", "--signal=USR1", job_of(wait_for(run, saved_at(12))))
    check_nothing_lost(finished(run), UNBROKEN, "saved")


@pytest.mark.parametrize("name", ["USR1", pytest.param("TERM", marks=pytest.mark.nightly)])
def test_only_the_ranks(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub, name: str) -> None:
    """As `--signal` does it, with the name that a cluster profile gives (`signal.name`)."""
    run = submit_stub(small, *PAIR, cluster="slurm")
    slurm.run("scancel", f"--signal={name}", job_of(wait_for(run, saved_at(12))))
    check_nothing_lost(finished(run), UNBROKEN, "saved")


def test_before_the_ranks_listen(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    """Until then submitit's handlers are there, which would requeue the job themselves, or end its first rank."""
    run = submit_stub(small, *PAIR, cluster="slurm", fault=Fault.SLOW_IMPORT)
    logs = [run.attempt(1).rank_log(rank) for rank in (0, 1)]
    wait_for(run, lambda _: all(log.exists() and "the imports take long" in log.read_text() for log in logs))
    slurm.run("scancel", "--signal=USR2", job_of(list(ledger.read(run.events))))
    events = finished(run)
    assert events[-1]["state"] == "done" and losses(events) == UNBROKEN and requeues(events) == ["saved"]
    assert next(e for e in events if e["event"] == "signal")["name"] == "SIGUSR2"


@pytest.mark.nightly  # half a minute
def test_preempted_without_a_grace_time(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    """Requeued at once: SIGTERM, and KillWait to leave in."""
    run = submit_stub(small, *PAIR, cluster="slurm")
    wait_for(run, saved_at(12))
    slurm.run("sbatch", "-p", "urgent", "-N4", "--exclusive", "--wrap", "true")
    check_nothing_lost(finished(run), UNBROKEN, "saved", "preempted")


@pytest.mark.nightly  # half a minute, mostly of waiting
def test_preempted_without_the_time_to_save(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    """KillWait is too short for this checkpoint: the run goes on from the one before."""
    run = submit_stub(small, *PAIR, cluster="slurm", fault=Fault.SLOW_SAVE)
    wait_for(run, saved_at(12))
    slurm.run("sbatch", "-p", "urgent", "-N4", "--exclusive", "--wrap", "true")
    events = finished(run)
    assert events[-1]["state"] == "done" and losses(events) == UNBROKEN
    assert requeues(events) == ["preempted"]
    resumed = next(e for e in events if e["event"] == "resumed")["step"]
    assert 0 < resumed <= max(e["step"] for e in events if e["event"] == "step" and e["attempt"] == 1)


@pytest.mark.nightly  # a minute and a half, of waiting
def test_the_time_limit_before_the_end_of_a_save(small: Path, submit_stub: SubmitStub) -> None:
    """The script ends the ranks before Slurm ends it too, and asks for another attempt."""
    profile = small.parent / "brisk.yaml"
    profile.write_text("signal: {lead: 40s}\n")
    environment = {"STUB_SAVE": "200", "MMLAUNCH_HANG_SECONDS": "900"}
    options = [*LONG, "-s", "resources.time=1m"]
    run = submit_stub(small, *options, cluster=str(profile), fault=Fault.SLOW_SAVE, **environment)
    events = wait_for(run, lambda events: bool(requeues(events)), seconds=300)
    assert requeues(events) == ["time limit"], events[-3:]
    mmlaunch("cancel", "--now", run.name)


@pytest.mark.nightly  # twenty seconds, of waiting
def test_the_deadline_needs_no_signal(small: Path, submit_stub: SubmitStub) -> None:
    """These ranks are deaf to every signal, as if none came: they know the end of their time limit by themselves."""
    profile = small.parent / "brisk.yaml"
    profile.write_text("signal: {lead: 40s}\n")
    run = submit_stub(small, *LONG, "-s", "resources.time=1m", cluster=str(profile), fault=Fault.DEAF)
    events = wait_for(run, lambda events: bool(requeues(events)))
    told = next(e for e in events if e["event"] == "signal")
    assert told["name"] == "deadline" and requeues(events) == ["saved"]
    assert [e["step"] for e in events if e["event"] == "checkpoint"][-1] == told["step"]
