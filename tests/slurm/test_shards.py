"""Shards as tasks of a job array: whatever happens to them, each row has one record, and it is the same one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.runs import mmlaunch, submit, until
from tests.slurm.cluster import SlurmCluster

from mmlaunch.monitor import status
from mmlaunch.restart import policy
from mmlaunch.run import ledger, shards
from mmlaunch.run.paths import RunPaths

RECIPE = """\
name: answers
model:
  vision: {random: {width: 32}}
  language: {random: {width: 32}}
data: {input: {format: shapes, limit: 10000}}
objective:
  method: predict
  shards: 20
  at_once: 4
  window: 100
  sampling: {temperature: 0, max_new_tokens: 12, prompts: 20}
precision: fp32
resources: {nodes: 1, gpus_per_node: 0, tasks_per_node: 1, cpus_per_rank: 1, memory: 1G, time: 10m}
restarts: {crash: 1, backoff: 1s}
"""


def write(folder: Path) -> Path:
    recipe = folder / "answers.yaml"
    recipe.write_text(RECIPE)
    return recipe


def running(run: RunPaths) -> list[RunPaths]:
    """The shards that have committed some of their records, and not all; by their ledgers, since Slurm is asked at most
    every ten seconds."""

    def is_at_work(shard: RunPaths) -> bool:
        events = ledger.read(shard.events)
        committed = events.last("records")
        return policy.left_open(events.events) and committed is not None and committed["done"] < committed["total"]

    return [one for one in shards.all_shards(run) if is_at_work(one)]


def nodes(run: RunPaths) -> list[str]:
    """The nodes of the shards that run."""
    started = (ledger.read(one.events).last("started") for one in running(run))
    return [str(event["nodes"]) for event in started if event is not None]


def rank_of(shard: RunPaths) -> int:
    """The process of a shard's only rank."""
    named = f"MMLAUNCH_RUN={shard.root}\0".encode()
    for proc in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command, variables = (proc / "cmdline").read_bytes(), (proc / "environ").read_bytes()
            if b"mmlaunch.schedulers.rank" in command and named in variables and b"srun" not in command:
                return int(proc.name)
    raise AssertionError(f"{shard.name} has no rank")


def all_ended(run: RunPaths) -> bool:
    return status.of(run).state in ("done", "failed", "lost", "cancelled")


def output(run: RunPaths) -> bytes:
    done = mmlaunch("results", run.name)
    assert done.returncode == 0, done.stdout + done.stderr
    return (run.root / "predictions.jsonl").read_bytes()


def causes(run: RunPaths) -> list[str]:
    """Why shards were started again."""
    requeued = [ledger.read(one.events).all("requeued") for one in shards.all_shards(run)]
    return [str(event["cause"]) for events in requeued for event in events]


def on_one_machine(recipe: Path, overrides: Sequence[str] = ()) -> bytes:
    """The records of one process that does everything."""
    run = submit(recipe, "-s", "objective.shards=1", *overrides, cluster="local")
    until(lambda: all_ended(run), seconds=300)
    return output(run)


@pytest.mark.nightly  # five minutes
def test_ten_thousand_rows_over_twenty_tasks(tmp_path: Path, slurm: SlurmCluster) -> None:
    """One node dies, one task is preempted, one process is killed: 10,000 records, those of one process."""
    recipe = write(tmp_path)
    whole = on_one_machine(recipe)
    run = submit(recipe, "-s", "resources.partition=gentle", cluster="slurm")
    victim = until(lambda: running(run), seconds=120)[0]
    os.kill(rank_of(victim), signal.SIGKILL)
    until(lambda: "crash" in causes(run), seconds=60)
    node = until(lambda: nodes(run), seconds=120)[0]
    slurm.run("sbatch", "-p", "urgent", "-N1", "--exclusive", f"--nodelist={node}", "--wrap", "sleep 1")
    until(lambda: {"saved", "preempted"} & set(causes(run)), seconds=120)
    node = until(lambda: nodes(run), seconds=120)[0]
    slurm.kill_node(node)
    try:
        until(lambda: "node" in causes(run), seconds=120)
    finally:
        slurm.revive_node(node)
    until(lambda: all_ended(run), seconds=300)
    merged = output(run)
    assert merged == whole
    assert [json.loads(line)["index"] for line in merged.splitlines()] == list(range(10_000))


@pytest.mark.nightly  # half a minute
def test_only_what_failed_is_submitted_again(tmp_path: Path, slurm: SlurmCluster) -> None:
    """A shard whose rank is killed twice fails; the others end; resume submits that one alone."""
    recipe, few = write(tmp_path), ["-s", "data.input.limit=3000", "-s", "objective.shards=3"]
    run = submit(recipe, *few, "-s", "restarts.crash=0", cluster="slurm")
    victim = until(lambda: running(run), seconds=120)[0]
    os.kill(rank_of(victim), signal.SIGKILL)
    until(lambda: all_ended(run), seconds=120)
    refused = mmlaunch("results", run.name)
    assert refused.returncode != 0 and f"1 of 3 shards are not whole: {victim.name} (failed)" in refused.stderr
    assert victim.name in mmlaunch("why", run.name).stdout
    assert mmlaunch("resume", run.name).returncode == 0
    until(lambda: all_ended(run), seconds=120)
    attempts = [len(one.attempt_numbers) for one in shards.all_shards(run)]
    assert sum(attempts) == 4 and len(victim.attempt_numbers) == 2
    assert len(output(run).splitlines()) == 3000
