"""Beside a live run on the real cluster: a command, the stacks and a trace of a rank on the second node."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runs import at_step, mmlaunch, submit, wait_for
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import job_of

RECIPE = """\
name: live
model:
  language: {random: {width: 16, layers: 1, heads: 2}}
data: {train: {format: shapes, limit: 64}, workers: 0}
objective: sft
optim: {lr: 1e-3}
batch: {global: 4}
steps: 100000
precision: fp32
log: {every: 1, tensorboard: false}
resources: {nodes: 2, gpus_per_node: 0, tasks_per_node: 1, cpus_per_rank: 1, memory: 1G, time: 10m}
"""


@pytest.mark.nightly  # half a minute
def test_a_rank_on_another_node(tmp_path: Path, slurm: SlurmCluster) -> None:
    recipe = tmp_path / "live.yaml"
    recipe.write_text(RECIPE.replace("  language:", "  vision: {random: {width: 32}}\n  language:"))
    run = submit(recipe, cluster="slurm")
    job = job_of(wait_for(run, at_step(3)))
    words = ["sh", "-c", 'echo "$RANK of job $SLURM_JOB_ID on $SLURMD_NODENAME in $MMLAUNCH_RUN"']
    nodes = []
    for rank in (0, 1):
        said = mmlaunch("attach", run.name, "--rank", str(rank), "--", *words)
        assert said.returncode == 0, said
        start, _, rest = said.stdout.partition(" on ")
        assert start == f"{rank} of job {job}" and rest.endswith(f" in {run.root}\n")
        nodes.append(rest.split()[0])
    assert nodes[0] != nodes[1]
    stacks = mmlaunch("attach", run.name, "--rank", "1", "--stacks")
    assert stacks.returncode == 0 and "trainer.py" in stacks.stdout, stacks
    traced = mmlaunch("profile", run.name, "--steps", "2", "--rank", "1")
    assert traced.returncode == 0 and "rank-1.json.gz" in traced.stdout, traced
    assert mmlaunch("cancel", run.name, "--now").returncode == 0
