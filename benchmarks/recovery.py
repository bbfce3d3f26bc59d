"""How long a run stands still after each kind of failure, and how many steps it does twice, on a real four-node Slurm.

    sudo python benchmarks/recovery.py > benchmarks/results/DATE-recovery.md

It starts a Slurm of its own on this machine (tests/slurm/cluster.py tells what it needs) and trains the quickstart's
model on 2 nodes x 2 ranks. A failure is struck after step 40; the clock runs until the first step of the next attempt.
Start-up is most of it: four ranks import torch at once on however few cores there are.
"""

from __future__ import annotations

import contextlib
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.slurm.cluster import SlurmCluster, running  # noqa: E402  as above

from mmlaunch.run import ledger  # noqa: E402  the path to the tests comes first
from mmlaunch.run.paths import RunPaths  # noqa: E402  as above

SHAPE = "{nodes: 2, gpus_per_node: 0, tasks_per_node: 2, cpus_per_rank: 1, memory: 1G, time: 10m}"
OPTIONS = [f"resources={SHAPE}", "steps=100000", "log.every=1", "checkpoint.every=10", "evaluate={samples: 0}"]


def submit(cluster: SlurmCluster) -> RunPaths:
    command = [sys.executable, "-m", "mmlaunch", "submit", str(ROOT / "recipes" / "quickstart.yaml"), "--json"]
    command += ["--cluster", "slurm", *(word for option in OPTIONS for word in ("-s", option))]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=True)
    return RunPaths(Path(json.loads(done.stdout)["directory"]))


def first_step(run: RunPaths, attempt: int, step: int = 0) -> ledger.Event:
    """The first step event of an attempt at or after a step."""
    while True:
        for event in ledger.read(run.events).all("step"):
            if event["attempt"] == attempt and event["step"] >= step:
                return event
        time.sleep(0.05)


def rank(run: RunPaths) -> int:
    """The process of one rank."""
    for proc in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (proc / "cmdline").read_bytes()
            if b"submitit.core._submit" in command and str(run.job).encode() in command and b"srun" not in command:
                return int(proc.name)
    raise RuntimeError("no rank is running")


def strikes(cluster: SlurmCluster) -> dict[str, Callable[[RunPaths, str], object]]:
    return {
        "kill -9 of a rank": lambda run, job: os.kill(rank(run), signal.SIGKILL),
        "scontrol requeue": lambda run, job: cluster.run("scontrol", "requeue", job),
        "warned (USR2 to the ranks)": lambda run, job: cluster.run("scancel", "--signal=USR2", job),
        "preempted": lambda run, job: cluster.run("sbatch", "-p", "urgent", "-N4", "--exclusive", "--wrap", "sleep 1"),
    }


def main() -> None:
    print(f"# Recovery from failures, {date.today()}\n")
    where = f"Slurm 22.05, Python {platform.python_version()}, {os.cpu_count()} cores, 2 x 2 ranks"
    print(f"`python benchmarks/recovery.py`, {where}\n")
    print("| failure | s to the first new step | of these to the new attempt | steps done twice |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, running() as cluster:
        os.environ["MMLAUNCH_RUNS"] = folder
        for name, strike in strikes(cluster).items():
            run = submit(cluster)
            first_step(run, 1, 40)
            job = str((ledger.read(run.events).last("queued") or {})["job"])
            struck = time.time()
            strike(run, job)
            new = first_step(run, 2)
            events = ledger.read(run.events)
            started = [event["time"] for event in events.all("started")]
            last = max(event["step"] for event in events.all("step") if event["attempt"] == 1)
            twice = last - new["step"] + 1
            print(f"| {name} | {new['time'] - struck:.1f} | {started[1] - struck:.1f} | {max(0, twice)} |", flush=True)
            cluster.run("scancel", "--user=root", check=False)


if __name__ == "__main__":
    main()
