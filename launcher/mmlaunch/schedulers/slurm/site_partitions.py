"""The partitions of a Slurm site, as sinfo lists them."""

from __future__ import annotations

import re
from dataclasses import replace

from mmlaunch.errors import MmlaunchError
from mmlaunch.schedulers.base import Partition
from mmlaunch.schedulers.gpu_memory import memory_of
from mmlaunch.schedulers.slurm import commands

_GPUS = re.compile(r"\bgpu:(?:([^:,()]+):)?(\d+)")


def partitions() -> list[Partition]:
    """Every partition with its nodes taken together; nothing where Slurm does not answer."""
    try:
        text = commands.call("sinfo", "--noheader", "--format=%P|%D|%G|%c|%l|%a")
    except MmlaunchError:
        return []
    known: dict[str, Partition] = {}
    for line in text.splitlines():
        one = _partition(line)
        if one is not None:
            known[one.name] = _together(known[one.name], one) if one.name in known else one
    return list(known.values())


def _partition(line: str) -> Partition | None:
    """One line: a partition, and its nodes of one kind. None for a partition that takes no jobs."""
    name, nodes, generic, cpus, limit, state, *_ = [*line.strip().split("|"), *[""] * 6]
    if not name or state not in ("up", ""):
        return None
    gpus = _GPUS.findall(generic)
    kinds = sorted({kind for kind, _ in gpus if kind})
    kind = kinds[0] if len(kinds) == 1 else ""
    return Partition(
        name=name.removesuffix("*"),
        is_default=name.endswith("*"),
        nodes=_number(nodes),
        gpus=sum(int(count) for _, count in gpus),
        gpu_type=kind,
        gpu_memory=memory_of(kind),
        cpus=max(1, _number(cpus)),
        max_time=_seconds(limit),
    )


def _together(one: Partition, other: Partition) -> Partition:
    """Nodes of two kinds in one partition: those with more GPUs say what a node has."""
    more, less = (other, one) if other.gpus > one.gpus else (one, other)
    cpus = min(one.cpus, other.cpus) if one.gpus == other.gpus else more.cpus
    nodes = more.nodes + (less.nodes if less.gpus == more.gpus else 0)
    alike = one.gpu_type == other.gpu_type or one.gpus != other.gpus
    kind, memory = (more.gpu_type, more.gpu_memory) if alike else ("", "")
    return replace(more, is_default=one.is_default or other.is_default, nodes=nodes, cpus=cpus,
                   gpu_type=kind, gpu_memory=memory)  # fmt: skip


def _number(text: str) -> int:
    """`64+` and `64` are 64: at least so many."""
    match = re.match(r"\d+", text)
    return int(match.group()) if match else 0


def _seconds(limit: str) -> int | None:
    """The seconds of `1-00:00:00`, `30:00` (minutes and seconds) or `infinite`."""
    parts = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not parts:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
