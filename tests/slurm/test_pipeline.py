"""Pipelines on a real cluster: stages wait held in the queue, and the end of one releases the next."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.conftest import SMALL, SubmitStub
from tests.runs import losses, mmlaunch, saved_at, submit, until, wait_for
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import BRISK, RESOURCES, UNBROKEN, finished, job_of, requeues
from tests.stub_job import Fault, losses_of

from mmlaunch.monitor import pipeline as monitor
from mmlaunch.results.merge import merge
from mmlaunch.run import ledger, pipeline
from mmlaunch.run.ledger import Event
from mmlaunch.run.paths import RunPaths

DIAMOND = """\
name: rlhf
stages:
  sft: small.yaml
  reward: {extends: small.yaml, model: {init_from: stage:sft}, objective: reward}
  dpo: {extends: small.yaml, model: {init_from: stage:sft}, objective: dpo}
  ppo:
    extends: small.yaml
    needs: dpo
    model: {init_from: stage:sft}
    objective: {method: ppo, rewards: stage:reward, sampling: {max_new_tokens: 8}}
"""
SIZE = [word if word == "-s" else f"shared.{word}" for word in ("-s", RESOURCES.format(1), *BRISK)]


@pytest.fixture
def diamond(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(SMALL)
    path = tmp_path / "rlhf.yaml"
    path.write_text(DIAMOND)
    return path


def stages_of(whole: RunPaths) -> dict[str, RunPaths]:
    return {stage.name: stage.paths for stage in pipeline.read(whole).stages}


def moment(events: Sequence[Event], kind: str) -> float:
    return float(next(event["time"] for event in events if event["event"] == kind))


def check_order(whole: RunPaths) -> dict[str, list[Event]]:
    """Each stage ran to its end exactly once, behind those that it needs; returns the ledgers."""
    ledgers = {name: list(ledger.read(run.events)) for name, run in stages_of(whole).items()}
    for stage in pipeline.read(whole).stages:
        kinds = [event["event"] for event in ledgers[stage.name]]
        assert kinds.count("ended") == kinds.count("released") == 1 and ledgers[stage.name][-1]["state"] == "done"
        for need in stage.needs:
            assert moment(ledgers[stage.name], "started") >= moment(ledgers[need], "ended")
    return ledgers


def three_faults(slurm: SlurmCluster, stages: dict[str, RunPaths]) -> None:
    """The reward stage is preempted, the controller stops and comes back, and a node of the PPO stage dies."""
    job = job_of(wait_for(stages["reward"], saved_at(5), seconds=300))
    nodes = slurm.run("squeue", "-h", "-j", job, "-o", "%N").strip()
    slurm.run("sbatch", "-p", "urgent", "-N2", f"-w{nodes}", "--exclusive", "--wrap", "true")  # it is preempted
    wait_for(stages["reward"], lambda events: any(event["event"] == "signal" for event in events))
    slurm.kill("slurmctld", signal.SIGTERM)
    time.sleep(5)
    slurm.start_ctld()
    job = job_of(wait_for(stages["ppo"], saved_at(5), seconds=400))
    node = slurm.run("squeue", "-h", "-j", job, "-o", "%B").strip()
    slurm.kill_node(node)
    try:
        finished(stages["ppo"])
    finally:
        slurm.revive_node(node)


def test_stages_wait_held_and_are_released(diamond: Path, slurm: SlurmCluster, submit_stub: SubmitStub) -> None:
    whole = submit_stub(diamond, *SIZE, "-s", "shared.steps=10", cluster="slurm")
    stages = stages_of(whole)
    job = job_of(list(ledger.read(stages["ppo"].events)))
    assert slurm.run("squeue", "-h", "-j", job, "-o", "%r").strip() == "JobHeldUser"
    shown = mmlaunch("status", whole.name).stdout
    assert "waiting" in shown and "begins after" in shown
    until(lambda: monitor.of(whole).whole.state == "done", seconds=300)
    check_order(whole)


@pytest.mark.nightly  # two minutes
def test_a_diamond_with_three_faults_ends_as_if_nothing_had_happened(
    diamond: Path, slurm: SlurmCluster, submit_stub: SubmitStub
) -> None:
    faults = ["-s", "shared.steps=300", "-s", "stages.reward.resources.partition=gentle"]
    whole = submit_stub(diamond, *SIZE, *faults, cluster="slurm")
    stages = stages_of(whole)
    three_faults(slurm, stages)
    ledgers = check_order(whole)
    assert all(losses(events) == UNBROKEN for events in ledgers.values())
    assert requeues(ledgers["ppo"]) == ["node"]
    assert set(requeues(ledgers["reward"])) <= {"saved", "preempted"} and requeues(ledgers["reward"])
    assert mmlaunch("status", whole.name).returncode == 0


@pytest.mark.nightly  # half a minute
def test_what_failed_is_resumed_with_what_waits_for_it(
    diamond: Path, slurm: SlurmCluster, submit_stub: SubmitStub
) -> None:
    fault = f"stages.sft.env=[STUB_FAULT={Fault.OUT_OF_MEMORY.value}]"
    whole = submit_stub(diamond, *SIZE, "-s", "shared.steps=10", "-s", fault, cluster="slurm")
    stages = stages_of(whole)
    assert finished(stages["sft"])[-1]["state"] == "failed"
    view = monitor.of(whole)
    assert view.in_state("blocked") == ["reward", "dpo", "ppo"] and view.whole.state == "failed"
    slurm.run("scancel", job_of(list(ledger.read(stages["dpo"].events))))
    until(lambda: monitor.of(whole).in_state("cancelled") == ["dpo"], seconds=60)
    assert mmlaunch("resume", whole.name, "-s", "stages.sft.env=[]").returncode == 0
    until(lambda: monitor.of(whole).whole.state == "done", seconds=300)
    assert all(losses(list(ledger.read(run.events)))[10] == losses_of(10)[10] for run in stages.values())


@pytest.mark.nightly  # a quarter of a minute
def test_a_job_that_is_held_again_is_released_by_resume(
    diamond: Path, slurm: SlurmCluster, submit_stub: SubmitStub
) -> None:
    """As after a crash of the controller, which may forget what it has just released."""
    whole = submit_stub(
        diamond, *SIZE, "-s", "shared.steps=10", "-s", "stages.reward.resources.nodes=4", cluster="slurm"
    )
    reward = stages_of(whole)["reward"]
    slurm.run("sbatch", "-N1", "--exclusive", "--wrap", "sleep 20")  # it waits for its four nodes
    until(lambda: ledger.read(reward.events).last("released") is not None)
    slurm.run("scontrol", "uhold", job_of(list(ledger.read(reward.events))))
    until(lambda: monitor.of(whole).in_state("held") == ["reward"], seconds=60)
    assert f"mmlaunch resume {whole.name}" in mmlaunch("status", whole.name).stdout
    assert "goes on with reward" in mmlaunch("resume", whole.name).stdout
    until(lambda: monitor.of(whole).whole.state == "done", seconds=120)


TRAINED = """\
name: stack
shared:
  precision: fp32
  log: {every: 1}
  checkpoint: {every: 5 steps}
  data: {workers: 0}
  resources: {nodes: 2, gpus_per_node: 0, tasks_per_node: 1, cpus_per_rank: 1, memory: 1G, time: 10m}
stages:
  sft: {extends: small.yaml, steps: 20}
  reward: {extends: small.yaml, model: {init_from: stage:sft}, objective: reward, steps: 150}
  dpo: {extends: small.yaml, model: {init_from: stage:sft}, objective: dpo, steps: 20}
  ppo:
    extends: small.yaml
    needs: dpo
    model: {init_from: stage:sft}
    objective: {method: ppo, rewards: stage:reward, rollouts: 32, sampling: {max_new_tokens: 40}}
    batch: {global: 16}
    steps: 24
  evaluate:
    model: {init_from: stage:ppo}
    data: {input: {format: shapes, limit: 48, skip: 1000}}
    objective: {method: evaluate, metric: exact, instruction: none, sampling: {max_new_tokens: 12}}
    resources: {nodes: 1}
"""


@pytest.mark.nightly  # four minutes
def test_a_trained_diamond_with_three_faults_ends_as_one_without(tmp_path: Path, slurm: SlurmCluster) -> None:
    """Real models and real training, from SFT to an evaluation of what PPO has made."""
    (tmp_path / "small.yaml").write_text(SMALL)
    recipe = tmp_path / "stack.yaml"
    recipe.write_text(TRAINED)
    unbroken = submit(recipe, cluster="slurm")
    until(lambda: monitor.of(unbroken).whole.state == "done", seconds=400)
    # What bad rows do is another key: no stage of the first one is used again, and all compute the same.
    size = ["-s", "shared.data.on_bad=skip", "-s", "stages.reward.resources.partition=gentle"]
    whole = submit(recipe, *size, cluster="slurm")
    stages = stages_of(whole)
    three_faults(slurm, stages)
    until(lambda: monitor.of(whole).whole.state == "done", seconds=200)
    before = stages_of(unbroken)
    for name in ("sft", "reward", "dpo", "ppo"):
        assert losses(list(ledger.read(stages[name].events))) == losses(list(ledger.read(before[name].events))), name
    assert requeues(list(ledger.read(stages["reward"].events))) and requeues(list(ledger.read(stages["ppo"].events)))
    records = [merge(run).output.read_bytes() for run in (stages["evaluate"], before["evaluate"])]
    assert records[0] == records[1] and records[0].count(b"\n") == 48
