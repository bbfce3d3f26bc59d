"""The preflight: every rank tests its node before the work begins, so that an unfit node is named at once."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from mmjobs.rank import error_record, gpu
from mmjobs.rank.events import EventWriter
from mmjobs.rank.position import node
from mmjobs.rank.ranks import Ranks
from mmlaunch.errors import BadInput, MachineError
from mmlaunch.run.paths import RunPaths

LEAST_BYTES = 64 << 20
"""Logs, stacks, events and temporary files of an attempt fit. Checkpoints answer for themselves when they are saved."""
LEAST_INODES = 1000
"""A handful of files for each rank of a large job, and those of a checkpoint."""
FREE_MEMORY = 0.8
"""The share of a GPU's memory that must be free: a leftover process of an earlier job may use the rest."""


class Unfit(MachineError):
    """The attempt cannot begin on these nodes. The ranks that know the reason have written their records."""


def check(paths: RunPaths, gpus: int, views: Sequence[gpu.View], ranks: Ranks, events: EventWriter) -> None:
    """Called by all ranks together; raises `Unfit` on all of them when one has a problem, and `BadInput` when it would
    have the same one on any other node. `views`: the GPUs that each rank sees."""
    started = time.monotonic()
    sum_problem = _sum(ranks)  # first: whatever else is wrong, all ranks take part
    shared = gpu.problem(ranks.rank, views) if gpus else None
    what = _folders(paths) or (shared and shared.text) or gpu_problem(gpus) or sum_problem
    problem = f"node {node()}: {what}" if what else None
    mistake = shared.text if shared and shared.mistake else None
    everywhere = ranks.gather((problem, mistake))
    if mistakes := [one for _, one in everywhere if one]:
        ranks.leave()  # together: whoever watches the ranks may end them all when the first one is gone
        raise BadInput(mistakes[0])
    if problems := [one for one, _ in everywhere if one]:
        if problem:
            error_record.leave(paths, None, "UnfitNode", problem, node=node())
        ranks.leave()
        raise Unfit("; ".join(dict.fromkeys(problems)))
    events.write("preflight", seconds=round(time.monotonic() - started, 3))


def _folders(paths: RunPaths) -> str | None:
    named = {"the run directory": paths.root, "TMPDIR": Path(os.environ.get("TMPDIR") or tempfile.gettempdir())}
    return next((problem for name, folder in named.items() if (problem := folder_problem(name, folder))), None)


def folder_problem(name: str, folder: Path) -> str | None:
    """What is wrong with a folder that this rank has to write to."""
    try:
        _write(folder)
        disk = os.statvfs(folder)
    except OSError as error:
        return f"cannot write to {name} {folder}: {error.strerror or error}"
    free = disk.f_bavail * disk.f_frsize
    if free < LEAST_BYTES:
        return f"{name} {folder} has {free >> 20} MiB left; {LEAST_BYTES >> 20} are needed"
    if disk.f_files and disk.f_favail < LEAST_INODES:  # some file systems have no fixed number, and say 0
        return f"{name} {folder} has room for {disk.f_favail} more files; {LEAST_INODES} are needed"
    return None


def _write(folder: Path) -> None:
    """Write, flush, read back and delete a small file."""
    path, content = folder / f".preflight-{os.urandom(8).hex()}", os.urandom(4096)
    try:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.read_bytes() != content:
            raise OSError("a file that was written there reads differently")
    finally:
        path.unlink(missing_ok=True)


def gpu_problem(wanted: int) -> str | None:
    """What is wrong with the GPUs of this node, or with that of this rank."""
    if not wanted:
        return None
    if not torch.cuda.is_available() or not torch.cuda.device_count():
        named = os.environ.get(gpu.VISIBLE)
        return f"0 GPUs can be used instead of {wanted}" + (f" ({gpu.VISIBLE}={named})" if named is not None else "")
    number = torch.cuda.current_device()
    try:
        free, total = torch.cuda.mem_get_info()
        if free < FREE_MEMORY * total:
            return f"GPU {number} has {free >> 30} of {total >> 30} GiB free: another process uses it"
        ones = torch.ones(256, 256, device="cuda")
        result = float((ones @ ones).sum())
    except RuntimeError as error:  # torch.AcceleratorError and OutOfMemoryError are
        return f"GPU {number} cannot be used: {str(error).partition(chr(10))[0]}"
    return None if result == 256.0**3 else f"GPU {number} computes {result} instead of {256.0**3}"


def _sum(ranks: Ranks) -> str | None:
    """A tiny all-reduce whose result is known."""
    values = torch.full((2,), float(ranks.rank + 1), dtype=torch.float64)
    ranks.add(values)
    right = ranks.world * (ranks.world + 1) / 2
    return None if values.tolist() == [right, right] else f"an all-reduce gave {values.tolist()} instead of {right}"
