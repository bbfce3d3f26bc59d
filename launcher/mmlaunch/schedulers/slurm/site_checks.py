"""What a Slurm site can and cannot do for runs: read from Slurm's own configuration."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmlaunch.load.cluster import Cluster
from mmlaunch.schedulers.base import Finding
from mmlaunch.schedulers.slurm import commands
from mmlaunch.schedulers.slurm.commands import SlurmError

SHARED = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "fuse", "wekafs", "panfs", "afs", "pvfs2", "smb2", "v9fs")

SHORT = 30
"""Seconds: Slurm's default KillWait, which is short for a checkpoint."""


def examine(profile: Cluster, runs: Path, uses_slurm: bool) -> list[Finding]:
    """Everything of this site that matters to a run; `uses_slurm`: whether runs of this profile go to it."""
    if shutil.which("sbatch") is None:
        return [Finding(True, "no sbatch on this machine", "runs use the local executor")]
    try:
        config = commands.configuration()
    except SlurmError as error:
        means = "nothing can be submitted to it now" if uses_slurm else "runs are local"
        return [Finding(not uses_slurm, "Slurm does not answer", f"{str(error).splitlines()[0]}; {means}")]
    return [
        *_slurm(config, runs),
        *_preemption(config),
        *_requeues(config),
        *_accounting(config),
        *_gpus(profile),
    ]


def _slurm(config: Mapping[str, str], runs: Path) -> Iterator[Finding]:
    version = re.search(r"\d+\.\d+", config.get("SLURM_VERSION", "")) or re.search(r"\d+\.\d+", _version())
    yield Finding(True, f"Slurm {version.group(0) if version else '?'}", "")
    proctrack = config.get("ProctrackType", "?")
    reached = "the ranks only, as they should" if "cgroup" in proctrack else "every process of a step"
    yield Finding(True, proctrack, f"signals reach {reached}")
    yield Finding(True, f"MinJobAge={config.get('MinJobAge', '?')}", "how long squeue remembers a job that ended")
    silence = _seconds(config, "SlurmdTimeout", 300)
    yield Finding(
        silence <= 600, f"SlurmdTimeout={silence} s", "a run stands still so long before a dead node is noticed"
    )
    kind = _filesystem(next(path for path in (runs, *runs.parents) if path.exists()))
    shared = any(name in kind for name in SHARED)
    means = "" if shared else "compute nodes may not see it: runs belong on a shared file system"
    yield Finding(shared, f"{runs} is on {kind}", means)


def _preemption(config: Mapping[str, str]) -> Iterator[Finding]:
    """Who takes a run off its nodes, and how long it has to save: slurm.conf(5), PreemptMode, GraceTime, KillWait."""
    wait = _seconds(config, "KillWait", 30)
    long = "a checkpoint that takes longer is lost, and the run goes on from the one before"
    means = f"what a run without a warning has to save in; {long}"
    yield Finding(wait >= SHORT, f"KillWait={wait} s", f"too short for most models: {means}" if wait < SHORT else means)
    mode, parameters = config.get("PreemptMode", "OFF"), config.get("PreemptParameters", "")
    if mode.startswith("OFF"):
        yield Finding(True, "PreemptMode=OFF", "nothing preempts a run here")
        return
    has_signal = "send_user_signal" in parameters
    means = "the pre-signal comes with it" if has_signal else "only SIGTERM comes with it: runs listen to that too"
    yield Finding(True, f"PreemptMode={mode}", f"a run may be preempted; {means}")
    for fields in _partitions():
        name, how, grace = (fields.get(key, "?") for key in ("PartitionName", "PreemptMode", "GraceTime"))
        if how.startswith("OFF"):
            yield Finding(True, f"partition {name}: PreemptMode=OFF", "runs in it are never preempted")
        elif how.startswith("REQUEUE"):
            given = f"{grace} s to save in" if grace != "0" else f"KillWait is all there is: {wait} s to save in"
            good = max(int(grace) if grace.isdigit() else 0, wait) >= SHORT
            yield Finding(good, f"partition {name}: PreemptMode={how}, GraceTime={grace}", given)
        else:
            ends = "runs end: mmlaunch resume RUN" if how.startswith("CANCEL") else "runs stand still meanwhile"
            yield Finding(not how.startswith("CANCEL"), f"partition {name}: PreemptMode={how}", ends)


def _requeues(config: Mapping[str, str]) -> Iterator[Finding]:
    requeue = config.get("JobRequeue", "?")
    yield Finding(True, f"JobRequeue={requeue}", "" if requeue == "1" else "runs ask for --requeue themselves")
    yield Finding(
        True, f"a requeued job waits {commands.requeue_delay(config)} s", "so long at least before each restart"
    )
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


def _gpus(profile: Cluster) -> Iterator[Finding]:
    try:
        generic = sorted({line.strip() for line in commands.call("sinfo", "--noheader", "--format=%G").splitlines()})
    except SlurmError:
        return
    gpus = [item for item in generic if "gpu" in item]
    option = {"gpus-per-node": "--gpus-per-node=N", "gres": "--gres=gpu:N", "none": "nothing: change gpus in it"}
    means = f"the profile asks for them with {option[profile.gpus]}" if gpus else ""
    yield Finding(True, f"GPUs: {', '.join(gpus) or 'none'}", means)


def _partitions() -> list[dict[str, str]]:
    try:
        lines = commands.call("scontrol", "show", "partition", "--oneliner").splitlines()
    except SlurmError:
        return []
    return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]


def _seconds(config: Mapping[str, str], key: str, default: int) -> int:
    """`10 sec` as a number."""
    match = re.match(r"\d+", config.get(key, ""))
    return int(match.group(0)) if match else default


def _filesystem(path: Path) -> str:
    command = ["stat", "--file-system", "--format=%T", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "an unknown file system"


def _version() -> str:
    try:
        return commands.call("sbatch", "--version")
    except SlurmError:
        return ""
