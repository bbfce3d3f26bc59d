"""How an attempt is told to end, in every shape that a site may give it: all ranks save together and go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.runs import losses, saved_at, submit, wait_for
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import LONG, PAIR, finished, job_of, ranks, requeues, tampered

from mmlaunch.run.ledger import Event


def check_nothing_lost(events: list[Event], unbroken: dict[int, float], *causes: str) -> None:
    """Saved once by all, at the step at which it stopped, and continued there to the same end."""
    assert events[-1]["state"] == "done" and losses(events) == unbroken
    assert requeues(events) in [[cause] for cause in causes]
    told = next(e for e in events if e["event"] == "signal")
    assert [e["step"] for e in events if e["event"] == "checkpoint"].count(told["step"]) == 1
    assert next(e for e in events if e["event"] == "resumed")["step"] == told["step"]
    assert max(e["step"] for e in events if e["event"] == "step" and e["attempt"] == 1) == told["step"]


def test_only_the_task_of_one_rank(small: Path, slurm: SlurmCluster, unbroken: dict[int, float]) -> None:
    """As proctrack/cgroup does it: no other process of the step is told. One rank is enough, they all agree."""
    run = submit(small, *PAIR, cluster="slurm")
    events = wait_for(run, saved_at(12), seconds=180)
    tasks = slurm.run("scontrol", "listpids", f"{job_of(events)}.0", "node2").splitlines()[1:]
    pids = [int(line.split()[0]) for line in tasks if line.split()[4] == "1"]  # GlobalID; a child of a task has none
    assert pids == [ranks(run)[1]]  # no shell or starter in between
    os.kill(pids[0], signal.SIGUSR2)
    check_nothing_lost(finished(run), unbroken, "saved")


def test_only_the_batch_shell(small: Path, slurm: SlurmCluster, unbroken: dict[int, float]) -> None:
    """As `--signal=B:` does it: the script passes it on."""
    run = submit(small, *PAIR, cluster="slurm")
    slurm.run("scancel", "--batch", "--signal=USR1", job_of(wait_for(run, saved_at(12), seconds=180)))
    check_nothing_lost(finished(run), unbroken, "saved")


def test_preempted_with_a_grace_time(small: Path, slurm: SlurmCluster, unbroken: dict[int, float]) -> None:
    """SIGTERM at once, without the pre-signal, and the partition's GraceTime to leave in."""
    run = submit(small, *PAIR, "-s", "resources.partition=gentle", cluster="slurm")
    wait_for(run, saved_at(12), seconds=180)
    slurm.run("sbatch", "-p", "urgent", "-N4", "--exclusive", "--wrap", "true")
    events = finished(run)
    check_nothing_lost(events, unbroken, "saved", "preempted")
    assert next(e for e in events if e["event"] == "signal")["name"] == "SIGTERM"


def test_preempted_without_a_grace_time(small: Path, slurm: SlurmCluster, unbroken: dict[int, float]) -> None:
    """Requeued at once: SIGTERM, and KillWait to leave in."""
    run = submit(small, *PAIR, cluster="slurm")
    wait_for(run, saved_at(12), seconds=180)
    slurm.run("sbatch", "-p", "urgent", "-N4", "--exclusive", "--wrap", "true")
    check_nothing_lost(finished(run), unbroken, "saved", "preempted")


def test_preempted_without_the_time_to_save(small: Path, slurm: SlurmCluster, unbroken: dict[int, float]) -> None:
    """KillWait is too short for this checkpoint: the run goes on from the one before."""
    slow = "        import time\n\n        time.sleep(60)\n"
    head = '        """Save what was done since the last checkpoint, and leave."""\n'
    run = tampered(small, *PAIR, file="train/trainer.py", before=head, after=head + slow)
    wait_for(run, saved_at(12), seconds=180)
    slurm.run("sbatch", "-p", "urgent", "-N4", "--exclusive", "--wrap", "true")
    events = finished(run)
    assert events[-1]["state"] == "done" and losses(events) == unbroken
    assert requeues(events) == ["preempted"]
    resumed = next(e for e in events if e["event"] == "resumed")["step"]
    assert 0 < resumed <= max(e["step"] for e in events if e["event"] == "step" and e["attempt"] == 1)


def test_the_deadline_needs_no_signal(small: Path) -> None:
    """These ranks are deaf to every signal, as if none came: they know the end of their time limit by themselves."""
    profile = small.parent / "brisk.yaml"
    profile.write_text("signal: {lead: 85s}\n")
    options = (*LONG, "-s", "resources.time=2m")
    run = tampered(
        small, *options, cluster=str(profile), file="rank/signals.py", before="self.signal = number", after="pass"
    )
    events = wait_for(run, lambda events: bool(requeues(events)))
    told = next(e for e in events if e["event"] == "signal")
    assert told["name"] == "deadline" and requeues(events) == ["saved"]
    assert [e["step"] for e in events if e["event"] == "checkpoint"][-1] == told["step"]
