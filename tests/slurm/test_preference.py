"""Preferences on four real nodes: the flagship's objective, at toy size, loses nothing to a preemption."""

from __future__ import annotations

from pathlib import Path

from tests.runs import losses, saved_at, submit, wait_for
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import BRISK, finished, requeues

FOUR = "resources={nodes: 4, gpus_per_node: 0, tasks_per_node: 1, cpus_per_rank: 1, memory: 1G, time: 10m}"
DPO = ["-s", FOUR, *BRISK, "-s", "steps=60", "-s", "objective=dpo", "-s", "model.dropout=0.1"]
DPO += ["-s", "model.train.language=lora", "-s", "model.lora.rank=4"]


def test_dpo_on_four_nodes_is_preempted_and_ends_as_if_it_were_not(small: Path, slurm: SlurmCluster) -> None:
    whole = finished(submit(small, *DPO, cluster="slurm"))
    assert whole[-1]["state"] == "done"
    assert next(event for event in whole if event["event"] == "ready")["world"] == 4
    assert abs(losses(whole)[1] - 0.6931) < 0.02, "but for dropout"
    run = submit(small, *DPO, "-s", "resources.partition=gentle", cluster="slurm")
    wait_for(run, saved_at(5), seconds=180)
    slurm.run("sbatch", "-p", "urgent", "-N4", "--exclusive", "--wrap", "true")
    events = finished(run)
    assert events[-1]["state"] == "done" and set(requeues(events)) <= {"saved", "preempted"} and requeues(events)
    assert losses(events) == losses(whole)
    new = [event["new"] for event in events if event["event"] == "reference"]
    assert new and not any(new), "another run beside it has measured the same weights"
