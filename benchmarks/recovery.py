"""How long a run stands still after each kind of failure, and how many steps it does twice, on a real four-node Slurm.

    sudo python -m benchmarks.recovery [FAILURE ...] > benchmarks/results/DATE-recovery.md

It starts a Slurm of its own on this machine (tests/slurm/cluster.py tells what it needs) and trains the quickstart's
model on 2 nodes x 2 ranks. A failure is struck after step 44; the clock runs until the first step of the next attempt.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

from tests.slurm.cluster import NODES, SlurmCluster, running
from tests.slurm.jobs import job_of, ranks, requeues

from mmlaunch.run import ledger
from mmlaunch.run.paths import RunPaths

Strike = Callable[[RunPaths, str], object]
ROOT = Path(__file__).resolve().parent.parent
SHAPE = "{nodes: 2, gpus_per_node: 0, tasks_per_node: 2, cpus_per_rank: 1, memory: 1G, time: 10m}"
OPTIONS = [f"resources={SHAPE}", "steps=100000", "log.every=1", "checkpoint.every=10", "evaluate={samples: 0}"]
STRUCK = 44  # between two checkpoints: a rank that hangs while it saves has half an hour
HEAD = """\
| failure | what mmlaunch calls it | s to the first new step | of these to the new attempt | steps done twice |
|---|---|---|---|---|"""
NOTES = """
Struck after step 44, with a checkpoint every 10 steps. Four ranks that import torch at once on these cores take most
of the time after the new attempt has begun; 7 s of the time before it are this cluster's requeue delay (Slurm's default
is 120 s). A hang is believed after 60 s without progress, 72 s by those who only wait for the rank that hangs. A dead
node is noticed after SlurmdTimeout (300 s by default): here the node was marked as down at once, by hand.
"""


def submit(cluster: SlurmCluster, *options: str) -> RunPaths:
    command = [sys.executable, "-m", "mmlaunch", "submit", str(ROOT / "recipes" / "quickstart.yaml"), "--json"]
    command += ["--cluster", "slurm", *(word for option in [*OPTIONS, *options] for word in ("-s", option))]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=True)
    return RunPaths(Path(json.loads(done.stdout)["directory"]))


def first_step(run: RunPaths, attempt: int, step: int = 0) -> ledger.Event:
    """The first step event of an attempt at or after a step."""
    while True:
        for event in ledger.read(run.events).all("step"):
            if event["attempt"] == attempt and event["step"] >= step:
                return event
        time.sleep(0.05)


def kill(run: RunPaths, job: str) -> None:
    os.kill(ranks(run)[3], signal.SIGKILL)


def strikes(cluster: SlurmCluster) -> dict[str, tuple[Strike, str]]:
    """What is done to a run, and an option that the run is submitted with."""
    through_the_queue = {
        "warned (USR2 to the ranks)": lambda run, job: cluster.run("scancel", "--signal=USR2", job),
        "preempted, no grace time": lambda run, job: cluster.run(
            "sbatch", "-p", "urgent", f"-N{NODES}", "--exclusive", "--wrap", "sleep 1"
        ),
        "`scontrol requeue`": lambda run, job: cluster.run("scontrol", "requeue", job),
        "kill -9 of a rank": kill,
        "a node dies": lambda run, job: cluster.kill_node(host(cluster, job)),
        "a rank hangs (SIGSTOP)": lambda run, job: os.kill(ranks(run)[3], signal.SIGSTOP),
    }
    return {
        **{name: (strike, "restarts.in_job=false") for name, strike in through_the_queue.items()},
        "kill -9 of a rank, in the same job": (kill, "restarts.in_job=true"),
        "the same, with memory": (kill, "checkpoint.memory_every=1"),
    }


def host(cluster: SlurmCluster, job: str) -> str:
    """The node of the batch script and of rank 0."""
    return cluster.run("squeue", "-h", "-j", job, "-o", "%B").strip()


def measure(cluster: SlurmCluster, strike: Strike, option: str) -> tuple[str, float, float, int]:
    """What it was called, the seconds to the first new step, those to the new attempt, and the steps done twice."""
    run = submit(cluster, option)
    first_step(run, 1, STRUCK)
    struck = time.time()
    strike(run, job_of(ledger.read(run.events).events))
    new = first_step(run, 2)
    events = ledger.read(run.events)
    cluster.run("scancel", "--user=root", check=False)
    last = max(event["step"] for event in events.all("step") if event["attempt"] == 1)
    started = events.all("started")[1]["time"]
    return requeues(events.events)[0], new["time"] - struck, started - struck, max(0, last - new["step"] + 1)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the cluster goes with this program
    print(f"# Recovery from failures, {date.today()}\n")
    where = f"{os.cpu_count()} cores, test cluster of {NODES} nodes on one machine, 2 x 2 ranks"
    print(f"`python -m benchmarks.recovery`, Slurm 22.05, Python {platform.python_version()}, {where}\n")
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder, running() as cluster:
        os.environ["MMLAUNCH_RUNS"] = folder
        chosen = strikes(cluster)
        for name in sys.argv[1:] or chosen:
            cause, step, attempt, twice = measure(cluster, *chosen[name])
            print(f"| {name} | {cause} | {step:.1f} | {attempt:.1f} | {twice} |", flush=True)
            for node in [f"node{number}" for number in range(1, NODES + 1)]:
                if node not in cluster.daemons:
                    cluster.revive_node(node)
    print(NOTES, end="")


if __name__ == "__main__":
    main()
