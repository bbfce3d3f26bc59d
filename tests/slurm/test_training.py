"""Real training on the real cluster, where a stub would not do: its losses are compared to the last bit."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest
from tests.conftest import SMALL, SubmitStub
from tests.runs import losses, mmlaunch, saved_at, submit, until, wait_for
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import (
    BRISK,
    PAIR,
    QUICK,
    TWO_BY_TWO,
    UNBROKEN,
    check_nothing_lost,
    finished,
    job_of,
    ranks,
    requeues,
    status,
)

from mmlaunch.run.ledger import Event
from mmlaunch.run.paths import RunPaths

TRAINING = [*QUICK, "-s", "steps=300", "-s", "model.dropout=0.1", "-s", "restarts.crash=0"]
"""What is broken, mended, and compared with `unbroken`."""
FOUR = "resources={nodes: 4, gpus_per_node: 0, tasks_per_node: 1, cpus_per_rank: 1, memory: 1G, time: 10m}"
DPO = ["-s", FOUR, *BRISK, "-s", "steps=60", "-s", "objective=dpo", "-s", "model.dropout=0.1"]
DPO += ["-s", "model.train.language=lora", "-s", "model.lora.rank=4"]


@pytest.fixture(scope="module")
def unbroken(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of a TRAINING that nothing stops."""
    home = tmp_path_factory.mktemp("unbroken")
    (home / "small.yaml").write_text(SMALL)
    environment = {name: cluster.environment[name] for name in ("SLURM_CONF", "PATH")}
    run = submit(home / "small.yaml", *TRAINING, cluster="slurm", MMLAUNCH_RUNS=str(home), **environment)
    return losses(finished(run))


@pytest.mark.nightly  # DPO below runs on two nodes every day
def test_two_nodes_with_two_ranks_each(small: Path, slurm: SlurmCluster) -> None:
    rendered = mmlaunch("render", "--cluster", "slurm", small, *TWO_BY_TWO)
    run = submit(small, *TWO_BY_TWO, cluster="slurm")
    events = finished(run)
    assert events[-1]["state"] == "done"
    assert run.attempt(1).script.read_text() == rendered.stdout
    assert next(e for e in events if e["event"] == "ready")["world"] == 4
    assert len(list(run.attempt(1).logs.glob("rank-*.out"))) == 4
    assert (status(run)["state"], status(run)["step"]) == ("done", 4)
    nodes = slurm.run("sacct", "-X", "-n", "-P", "-j", job_of(events), "-o", "NNodes,NTasks%9,ReqCPUS")
    assert nodes.startswith("2|")


@pytest.mark.nightly  # a minute
def test_four_ranks_are_four_ranks_wherever_they_run(small: Path, slurm: SlurmCluster) -> None:
    cluster = submit(small, *TWO_BY_TWO, cluster="slurm")
    local = submit(small, *TWO_BY_TWO, "-s", "resources={nodes: 1, gpus_per_node: 0, tasks_per_node: 4}")
    assert losses(finished(local)) == losses(finished(cluster))


def test_the_stub_writes_what_training_writes(small: Path, submit_stub: SubmitStub) -> None:
    """The other tests of this folder are worth as much as their stub is like the real job."""
    real, stub = (finished(start(small, *BRISK, "-s", "steps=6", cluster="local")) for start in (submit, submit_stub))
    kinds = [[event["event"] for event in events if event["event"] != "step"] for events in (real, stub)]
    only_real = {"preflight", "started_up", "evaluated", "warning"}
    assert [kind for kind in kinds[0] if kind not in only_real] == kinds[1]
    for event in stub:
        (like, *_) = (one for one in real if one["event"] == event["event"])
        assert event.keys() <= like.keys(), event["event"]


@pytest.mark.nightly  # a minute; the one on four nodes below is preempted in the same way
def test_preempted_with_a_grace_time(small: Path, slurm: SlurmCluster, unbroken: dict[int, float]) -> None:
    """SIGTERM at once, without the pre-signal, and the partition's GraceTime to leave in."""
    run = submit(small, *TRAINING, "-s", "resources.partition=gentle", cluster="slurm")
    wait_for(run, saved_at(12), seconds=180)
    slurm.run("sbatch", "-p", "urgent", "-N4", "--exclusive", "--wrap", "true")
    events = finished(run)
    check_nothing_lost(events, unbroken, "saved", "preempted")
    assert next(e for e in events if e["event"] == "signal")["name"] == "SIGTERM"


def test_a_node_that_dies(small: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    """With it goes the batch script: the next attempt learns from Slurm what became of this one."""
    run = submit_stub(small, *PAIR, cluster="slurm")
    node = slurm.run("squeue", "-h", "-j", job_of(wait_for(run, saved_at(7))), "-o", "%B").strip()
    slurm.kill_node(node)
    try:
        events = finished(run)
    finally:
        slurm.revive_node(node)
    assert events[-1]["state"] == "done", events[-1]
    assert losses(events) == UNBROKEN
    assert requeues(events) == ["node"]
    assert next(e for e in events if e["event"] == "failed")["evidence"] == "Slurm says NODE_FAIL: a node went down"


@pytest.mark.nightly  # a minute
def test_a_killed_rank_goes_on_from_the_memory_of_its_nodes(
    small: Path, slurm: SlurmCluster, unbroken: dict[int, float]
) -> None:
    """Twice in the same job, from steps that the disk does not have; when it ends, well or not, that memory is free."""
    settings = ["checkpoint.every=100000", "checkpoint.memory_every=3", "restarts={crash: 2, backoff: 1s}"]
    options = [word for setting in settings for word in ("-s", setting)]
    run = submit(small, *TRAINING, *options, cluster="slurm")
    for attempt, step in ((1, 20), (2, 60)):
        wait_for(run, partial(has_done, attempt, step), seconds=180)
        os.kill(ranks(run)[1], signal.SIGKILL)
    events = finished(run)
    assert events[-1]["state"] == "done" and losses(events) == unbroken
    resumed = [event for event in events if event["event"] == "resumed"]
    assert [event["tier"] for event in resumed] == ["memory", "memory"] and resumed[0]["step"] >= 18
    assert [event["in_job"] for event in events if event["event"] == "requeued"] == [True, True]
    fails = submit(small, *TRAINING, *options, "-s", "restarts.crash=0", cluster="slurm")
    wait_for(fails, partial(has_done, 1, 9), seconds=180)
    assert left_in_memory(fails)
    os.kill(ranks(fails)[1], signal.SIGKILL)
    assert finished(fails)[-1]["state"] == "failed"
    until(lambda: not left_in_memory(run) and not left_in_memory(fails), seconds=30)


def has_done(attempt: int, step: int, events: list[Event]) -> bool:
    return any(e["event"] == "step" and e["attempt"] == attempt and e["step"] >= step for e in events)


def left_in_memory(run: RunPaths) -> list[Path]:
    """What the jobs of a run have in the memory of the nodes, which all are this machine."""
    return list(Path(f"/dev/shm/mmlaunch-{os.getuid()}").glob(f"{run.name}-*"))


@pytest.mark.parametrize("nodes", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_dpo_on_several_nodes_is_preempted_and_ends_as_if_it_were_not(
    small: Path, slurm: SlurmCluster, nodes: int
) -> None:
    size = [*DPO, "-s", f"resources.nodes={nodes}"]
    whole = finished(submit(small, *size, cluster="slurm"))
    assert whole[-1]["state"] == "done"
    assert next(event for event in whole if event["event"] == "ready")["world"] == nodes
    assert abs(losses(whole)[1] - 0.6931) < 0.02, "but for dropout"
    run = submit(small, *size, "-s", "resources.partition=gentle", cluster="slurm")
    wait_for(run, saved_at(5), seconds=180)
    slurm.run("sbatch", "-p", "urgent", "-N4", "--exclusive", "--wrap", "true")
    events = finished(run)
    assert events[-1]["state"] == "done" and set(requeues(events)) <= {"saved", "preempted"} and requeues(events)
    assert next(event for event in events if event["event"] == "signal")["name"] == "SIGTERM"
    assert losses(events) == losses(whole)
    new = [event["new"] for event in events if event["event"] == "reference"]
    assert new and not any(new), "another run beside it has measured the same weights"
