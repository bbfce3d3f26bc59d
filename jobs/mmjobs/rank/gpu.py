"""The GPU of a rank: which of those that it sees it takes, and whether another rank of its node has the same one.

What a rank sees is decided by Slurm, a container, the shell and the driver: all GPUs of the node, some of them, or its
own alone. So the ranks compare what they see before any of them takes one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from mmjobs.rank.position import node

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class View:
    """The GPUs that a rank sees."""

    node: str
    gpus: tuple[str, ...] = ()
    """Their UUIDs, in the order of their numbers; none where they cannot be asked."""
    sliced: bool = False
    """Whether they are slices of a GPU (MIG)."""
    visible: str | None = field(default=None, compare=False)
    """What CUDA_VISIBLE_DEVICES says."""
    error: str | None = field(default=None, compare=False)
    """Why they could not be asked."""


class Problem(NamedTuple):
    """Why a rank has no GPU for itself."""

    text: str
    mistake: bool
    """Whether it would be the same on any other node: fewer GPUs were given than there are ranks."""


def seen() -> View:
    """The GPUs that this rank sees."""
    visible = os.environ.get(VISIBLE)
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        gpus = [torch.cuda.get_device_properties(number) for number in range(count)]
    except RuntimeError as error:  # torch.AcceleratorError is
        return View(node(), visible=visible, error=str(error).partition("\n")[0])
    sliced = any(" MIG " in gpu.name for gpu in gpus)
    return View(node(), tuple(str(gpu.uuid) for gpu in gpus), sliced, visible)


def number_of(rank: int, views: Sequence[View]) -> int | None:
    """The n-th rank of a node that sees the same GPUs takes the n-th of them. None: it sees none.

    Where there are too few, they are dealt out once more, and `problem` says so.
    """
    own = views[rank]
    return views[:rank].count(own) % len(own.gpus) if own.gpus else None


def take(rank: int, views: Sequence[View]) -> None:
    """Make its GPU the one that this rank computes on."""
    number = number_of(rank, views)
    if number is not None:
        torch.cuda.set_device(number)
        # DeepSpeed takes it for the number of the device, and a rank that sees its own GPU alone has number 0.
        os.environ["LOCAL_RANK"] = str(number)


def problem(rank: int, views: Sequence[View]) -> Problem | None:
    """Why this rank has no GPU for itself; None where it has, and where it sees none at all."""
    own = views[rank]
    if own.error:
        return Problem(f"a GPU cannot be used: {own.error}", mistake=False)
    here = {other: view for other, view in enumerate(views) if view.node == own.node and view.gpus}
    if rank not in here or len(here) == 1:
        return None
    if any(view.sliced for view in here.values()):
        what = f"the {len(here)} ranks of node {own.node} were given slices of GPUs (MIG), which NCCL does not join"
        return Problem(f"resources.gpus_per_node: {what}; ask for whole GPUs, or write 1", mistake=True)
    taken = {other: view.gpus[number_of(other, views) or 0] for other, view in here.items()}
    sharing = [str(other) for other, gpu in taken.items() if gpu == taken[rank]]
    if len(sharing) == 1:
        return None
    count = len({gpu for view in here.values() for gpu in view.gpus})
    named = f"{VISIBLE} is not set" if own.visible is None else f"{VISIBLE}={own.visible}"
    what = f"the {len(here)} ranks of node {own.node} see {count} GPU{'s' if count > 1 else ''} ({named})"
    right = f"write {count}, or give each rank a GPU of its own" if count < len(here) else "give each rank its own"
    text = f"resources.gpus_per_node: {what}, and ranks {', '.join(sharing)} would share one; {right}"
    return Problem(text, mistake=own.visible is not None and len(own.visible.split(",")) < len(here))
