"""PPO on the real cluster: preempted while it generates, killed while it learns, it ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tests.runs import losses, submit, wait_for
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import finished, ranks, requeues

from mmlaunch.run.ledger import Event

RECIPE = """\
name: ppo
model:
  vision: {random: {width: 32}}
  language: {random: {width: 32, max_positions: 256}}
data:
  train: {format: shapes, limit: 256}
  workers: 0
objective:
  method: ppo
  rewards: score.py:share
  sampling: {answers: 2, max_new_tokens: 160, prompts: 2}
  rollouts: 128
  epochs: 2
  kl: 0.01
optim: {lr: 1e-3}
batch: {global: 32}
steps: 32
precision: fp32
log: {every: 1}
checkpoint: {every: 3 steps}
resources: {nodes: 2, gpus_per_node: 0, tasks_per_node: 2, cpus_per_rank: 1, memory: 1G, time: 10m}
restarts: {crash: 1}
"""
SCORE = """\
def share(answer, truth):
    return sum(" " <= letter < "P" for letter in answer) / max(1, len(answer))
"""


def generating(step: int, events: list[Event]) -> bool:
    """Whether the rollout of this step, or of a later one, is being generated right now."""
    last = next((event for event in reversed(events) if event["event"] in ("generated", "rollout")), None)
    return last is not None and last["event"] == "generated" and last["step"] >= step and last["done"] < last["total"]


@pytest.mark.nightly  # two minutes
def test_ppo_is_preempted_while_it_generates_and_killed_while_it_learns(tmp_path: Path, slurm: SlurmCluster) -> None:
    recipe = tmp_path / "ppo.yaml"
    recipe.write_text(RECIPE)
    (tmp_path / "score.py").write_text(SCORE)
    whole = finished(submit(recipe, cluster="slurm"))
    assert whole[-1]["state"] == "done" and len(losses(whole)) == 32
    run = submit(recipe, "-s", "resources.partition=gentle", cluster="slurm")
    wait_for(run, lambda events: generating(8, events))
    slurm.run("sbatch", "-p", "urgent", "-N4", "--exclusive", "--wrap", "true")
    events = wait_for(run, lambda events: any(event["event"] == "requeued" for event in events))
    stopped = next(event for event in events if event["event"] == "signal")["step"]
    wait_for(
        run, lambda events: any(e["event"] == "step" and e["step"] > stopped + 2 and e["attempt"] > 1 for e in events)
    )
    os.kill(ranks(run)[3], signal.SIGKILL)
    events = finished(run)
    assert events[-1]["state"] == "done" and losses(events) == losses(whole)
    causes = requeues(events)
    why = [event["evidence"] for event in events if event["event"] == "failed"]
    assert "crash" in causes, why
    assert {"saved", "preempted"} & set(causes) and set(causes) <= {"crash", "saved", "preempted"}
