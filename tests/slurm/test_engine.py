"""An external engine on the real cluster: one allocation, the last node serves, and a server that dies is replaced."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from tests.runs import losses, submit, wait_for
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import finished

STAND_IN = Path(__file__).parents[1] / "jobs" / "rollout" / "stand_in.py"
RECIPE = f"""\
name: served
model:
  vision: {{random: {{width: 16, layers: 1, heads: 2, image_size: 16, patch: 8}}}}
  language: {{random: {{width: 16, layers: 1, heads: 2, max_positions: 128}}}}
data:
  train: {{format: shapes, limit: 256}}
  workers: 0
objective:
  method: grpo
  rewards: score.py:share
  sampling: {{answers: 4, max_new_tokens: 24, prompts: 2}}
  rollouts: 64
  epochs: 2
  engine: {{kind: vllm, nodes: 1, command: [{sys.executable}, {STAND_IN}]}}
optim: {{lr: 1e-3}}
batch: {{global: 32}}
steps: 16
precision: fp32
log: {{every: 1}}
checkpoint: {{every: 4 steps}}
resources: {{nodes: 3, gpus_per_node: 0, tasks_per_node: 1, cpus_per_rank: 1, memory: 1G, time: 10m}}
restarts: {{crash: 0}}
"""
SCORE = """\
def share(answer, truth):
    return sum(" " <= letter < "P" for letter in answer) / max(1, len(answer))
"""


@pytest.mark.nightly  # a minute
def test_one_allocation_trains_and_serves_and_a_dead_server_is_replaced(tmp_path: Path, slurm: SlurmCluster) -> None:
    recipe = tmp_path / "served.yaml"
    recipe.write_text(RECIPE)
    (tmp_path / "score.py").write_text(SCORE)
    run = submit(recipe, cluster="slurm")
    wait_for(run, lambda events: any(event["event"] == "generated" and event["step"] >= 4 for event in events))
    server = next(pid for pid in _processes() if _command(pid)[1:2] == [str(STAND_IN)])
    os.kill(server, signal.SIGKILL)
    events = finished(run)
    assert events[-1]["state"] == "done" and set(losses(events)) == set(range(1, 17)), _logs(run.attempt(1).logs)
    address = json.loads(run.server(0).read_text())
    assert address["starts"] == 2 and run.server(0).stat().st_mode & 0o077 == 0
    ranks = {log.name for log in run.attempt(1).rank_logs}
    assert ranks == {"rank-0.out", "rank-1.out"}, "the third node has no rank"
    for event in events:
        if event["event"] == "rollout":
            assert event["metrics"]["generation_gap_max"] < 1e-5
    assert not [pid for pid in _processes() if str(STAND_IN) in _command(pid)], "servers end with their job"


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def _logs(folder: Path) -> str:
    return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(folder.glob("*.*")))
