"""A full disk: how it is distinguished from other errors, and what a run raises that cannot go on."""

from __future__ import annotations

import errno

from mmlaunch.errors import MachineError


class DiskFull(MachineError):
    """No space for a checkpoint, and the run cannot or may not go on without it."""


def is_full(error: OSError) -> bool:
    """Whether no space is left, on the disk or within the user's quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
