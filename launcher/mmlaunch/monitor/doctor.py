"""What this machine and its schedulers can and cannot do for runs."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from mmlaunch.load import rundir
from mmlaunch.load.cluster import Cluster
from mmlaunch.schedulers import choose
from mmlaunch.schedulers.base import Finding, Partition


def examine() -> list[Finding]:
    """Everything that matters to a run here."""
    runs = rundir.runs_folder()
    name, profile = choose.profile(None)
    findings = [*_machine(runs, name, profile)]
    for scheduler in choose.all_schedulers():
        findings += scheduler.examine(profile, runs)
    return findings


def partitions(executor: str) -> list[Partition]:
    """What a job of this scheduler may be sent to, and what is there; nothing where it does not say."""
    return choose.named(executor).partitions()


def _machine(folder: Path, name: str, profile: Cluster) -> Iterator[Finding]:
    yield Finding(True, f"Python {platform.python_version()}, {os.cpu_count()} cores", "")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    yield Finding(free > 10, f"{free:.0f} GB free for runs in {folder}", "" if free > 10 else "checkpoints need space")
    if not os.access(existing, os.W_OK):
        yield Finding(False, f"{existing} cannot be written", f"set ${rundir.VARIABLE} to a folder of yours")
    yield Finding(True, f"profile {name} ({profile.description or profile.executor})", "another: --cluster NAME")
