"""A full disk: how it is told from other errors, and what a run that gives up on it raises."""

from __future__ import annotations

import errno

from mmlaunch.errors import MachineError


class DiskFull(MachineError):
    """There is no room for a checkpoint, and the run cannot or may not go on without it."""


def is_full(error: OSError) -> bool:
    """Whether there is no room left, on the disk or within the user's quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
