"""What this site can and cannot do for runs: read from Slurm's own configuration, said in words."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmlaunch import cluster as clusters
from mmlaunch import rundir
from mmlaunch.slurm import commands
from mmlaunch.slurm.commands import SlurmError

SHARED = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "fuse", "wekafs", "panfs", "afs", "pvfs2", "smb2", "v9fs")


@dataclass(frozen=True)
class Finding:
    """One fact of the site, and what follows from it."""

    good: bool
    what: str
    means: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> list[Finding]:
    """Everything that matters to a run here."""
    findings = [*_machine()]
    if shutil.which("sbatch") is None:
        return [*findings, Finding(True, "no sbatch on this machine", "runs use the local executor")]
    try:
        config = configuration(commands.call("scontrol", "show", "config"))
    except SlurmError as error:
        first = str(error).splitlines()[0]
        return [*findings, Finding(False, "Slurm does not answer", f"{first}; nothing can be submitted to it now")]
    return [*findings, *_slurm(config), *_accounting(config), *_gpus()]


def configuration(text: str) -> dict[str, str]:
    """`scontrol show config` as a mapping."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _machine() -> Iterator[Finding]:
    yield Finding(True, f"Python {platform.python_version()}, {os.cpu_count()} cores", "")
    folder = rundir.runs_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    yield Finding(free > 10, f"{free:.0f} GB free for runs in {folder}", "" if free > 10 else "checkpoints need room")
    if not os.access(existing, os.W_OK):
        yield Finding(False, f"{existing} cannot be written", f"set ${rundir.VARIABLE} to a folder of yours")
    name, profile = clusters.choose(None)
    yield Finding(True, f"profile {name} ({profile.description or profile.executor})", "another: --cluster NAME")


def _slurm(config: Mapping[str, str]) -> Iterator[Finding]:
    version = re.search(r"\d+\.\d+", config.get("SLURM_VERSION", "")) or re.search(r"\d+\.\d+", _version())
    yield Finding(True, f"Slurm {version.group(0) if version else '?'}", "")
    requeue = config.get("JobRequeue", "?")
    yield Finding(True, f"JobRequeue={requeue}", "" if requeue == "1" else "runs ask for --requeue themselves")
    mode, parameters = config.get("PreemptMode", "OFF"), config.get("PreemptParameters", "")
    if mode.startswith("OFF"):
        yield Finding(True, "PreemptMode=OFF", "nothing preempts a run here")
    else:
        told = "send_user_signal" in parameters
        means = "the pre-signal comes with it" if told else "only SIGTERM comes with it: runs listen to that too"
        yield Finding(True, f"PreemptMode={mode}", f"a run may be preempted; {means}")
        if "CANCEL" in mode:
            yield Finding(False, "preempted jobs are cancelled here", "mmlaunch resume RUN continues one")
    yield Finding(True, f"KillWait={config.get('KillWait', '?')}", "the time between SIGTERM and SIGKILL")
    proctrack = config.get("ProctrackType", "?")
    reached = "the ranks only, as they should" if "cgroup" in proctrack else "every process of a step"
    yield Finding(True, proctrack, f"signals reach {reached}")
    yield Finding(True, f"MinJobAge={config.get('MinJobAge', '?')}", "how long squeue remembers a job that ended")
    for key in ("RequeueExit", "RequeueExitHold"):
        if config.get(key, "(null)") not in ("(null)", "", "N/A"):
            clash = bool(set(re.findall(r"\d+", config[key])) & {"90", "91", "92", "93", "94"})
            means = "clashes with a run's own exit codes" if clash else "no exit code of a run"
            yield Finding(not clash, f"{key}={config[key]}", means)


def _accounting(config: Mapping[str, str]) -> Iterator[Finding]:
    kind = config.get("AccountingStorageType", "")
    if "slurmdbd" not in kind:
        yield Finding(True, "no accounting", "a job that left the queue is judged by its own events alone")
        return
    try:
        commands.call("sacct", "--allocations", "--noheader", "--format=JobID", "--starttime=now-1hour")
        yield Finding(True, "sacct answers", "")
    except SlurmError as error:
        yield Finding(False, "sacct does not answer", f"{error}; states may be unknown for a while, never wrong")
    folder = rundir.runs_folder()
    kind = _filesystem(next(path for path in (folder, *folder.parents) if path.exists()))
    shared = any(name in kind for name in SHARED)
    means = "" if shared else "compute nodes may not see it: runs belong on a shared file system"
    yield Finding(shared, f"{folder} is on {kind}", means)


def _gpus() -> Iterator[Finding]:
    try:
        generic = sorted({line.strip() for line in commands.call("sinfo", "--noheader", "--format=%G").splitlines()})
    except SlurmError:
        return
    gpus = [item for item in generic if "gpu" in item]
    means = "asked for as the profile says: gpus-per-node or gres" if gpus else ""
    yield Finding(True, f"GPUs: {', '.join(gpus) or 'none'}", means)


def _filesystem(path: Path) -> str:
    command = ["stat", "--file-system", "--format=%T", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "an unknown file system"


def _version() -> str:
    try:
        return commands.call("sbatch", "--version")
    except SlurmError:
        return ""
