"""What tests of Slurm runs share: their size, their job, its processes, and what must be true after an interruption."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.runs import ended, losses, mmlaunch, wait_for
from tests.stub_job import losses_of

from mmlaunch.run.ledger import Event
from mmlaunch.run.paths import RunPaths

RESOURCES = "resources={{nodes: 2, gpus_per_node: 0, tasks_per_node: {}, cpus_per_rank: 1, memory: 1G, time: 10m}}"
BRISK = ["-s", "log.every=1", "-s", "checkpoint.every=5", "-s", "data.workers=0"]
TWO_BY_TWO = ["-s", RESOURCES.format(2), *BRISK]
QUICK = ["-s", RESOURCES.format(1), *BRISK]
"""One rank on each of two nodes: the quickest start."""
LONG = [*QUICK, "-s", "steps=100000"]
PAIR = [*QUICK, "-s", "steps=300", "-s", "restarts.crash=0"]
"""What is interrupted, goes on, and is compared with `UNBROKEN`."""
UNBROKEN = losses_of(300)
"""The losses of a PAIR of stubs that nothing stops."""


def status(run: RunPaths) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(mmlaunch("status", "--json", run.name).stdout)[0]
    return record


def job_of(events: Sequence[Event]) -> str:
    return str([event for event in events if event["event"] == "queued"][-1]["job"])


def finished(run: RunPaths) -> list[Event]:
    """The ledger of a run that has ended, however busy this machine is."""
    return wait_for(run, ended, seconds=300)


def requeues(events: Sequence[Event]) -> list[str]:
    """The causes for which a run was put back into the queue."""
    return [event["cause"] for event in events if event["event"] == "requeued"]


def check_nothing_lost(events: list[Event], unbroken: dict[int, float], *causes: str) -> None:
    """Saved once by all, at the step at which it stopped, and continued there to the same end."""
    assert events[-1]["state"] == "done" and losses(events) == unbroken
    assert requeues(events) in [[cause] for cause in causes]
    told = next(e for e in events if e["event"] == "signal")
    assert [e["step"] for e in events if e["event"] == "checkpoint"].count(told["step"]) == 1
    assert next(e for e in events if e["event"] == "resumed")["step"] == told["step"]
    assert max(e["step"] for e in events if e["event"] == "step" and e["attempt"] == 1) == told["step"]


def ranks(run: RunPaths) -> dict[int, int]:
    """The process of each rank."""
    found = {}
    for proc in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: -int(path.name)):  # older than its workers
        with contextlib.suppress(OSError):
            command, variables = (proc / "cmdline").read_bytes(), (proc / "environ").read_bytes().split(b"\0")
            rank = next((v.partition(b"=")[2] for v in variables if v.startswith(b"SLURM_PROCID=")), b"")
            if b"mmlaunch.schedulers.rank" in command and str(run.job).encode() in command and b"srun" not in command:
                found[int(rank)] = int(proc.name)
    return found


def programs(folder: Path, **scripts: str) -> str:
    """A PATH on which these scripts stand before the programs of Slurm; REAL is the program itself."""
    folder.mkdir()
    for name, script in scripts.items():
        real = shutil.which(name)
        (folder / name).write_text(f"#!/bin/bash\n{script.replace('REAL', str(real))}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"
