"""How a process that works for a rank starts, and ends with it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal

FORK = multiprocessing.get_context("fork")
"""Workers share the memory of their rank; Python 3.14 starts them elsewhere, unless it is told."""


def end_with_parent(parent: int | None = None) -> None:
    """Have the kernel end this process when its parent goes, however that ends (prctl(2), PR_SET_PDEATHSIG).

    `parent` is the parent's process id, where `multiprocessing` does not know it.
    """
    with contextlib.suppress(OSError, AttributeError):  # not on Linux
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    known = multiprocessing.parent_process()
    if (parent is not None and parent != os.getppid()) or (known is not None and not known.is_alive()):
        os._exit(1)  # it went before the kernel was asked
