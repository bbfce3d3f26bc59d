"""Disks that cannot be written, full ones above all: how they are told from other errors, and what a run raises."""

from __future__ import annotations

import errno

from mmlaunch.errors import MachineError


class DiskFull(MachineError):
    """No space for a checkpoint, and the run cannot or may not go on without it."""


_NOT_WRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOLCK,
    errno.EFBIG,
)  # fmt: skip


def is_not_writable(error: OSError) -> bool:
    """Whether a file that is there cannot be written: its disk is full, read-only, broken, or not ours any more."""
    return error.errno in _NOT_WRITABLE


def is_full(error: OSError) -> bool:
    """Whether no space is left, on the disk or within the user's quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
