"""Files that ranks and runs share: seen by every node, and linked rather than copied."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

_PATIENCE = 90.0
"""Seconds that a file system may take to show a file to all nodes."""


def visible(path: Path) -> Path:
    """A file that another rank has just written, as soon as this machine sees it too: NFS takes its time."""
    until = time.monotonic() + _PATIENCE
    while not path.exists() and time.monotonic() < until:
        os.scandir(path.parent).close()
        time.sleep(0.2)
    return path


def link_or_copy(path: Path, target: Path) -> None:
    """Link a file of another run; where the file system cannot, copy it. A failure leaves nothing."""
    partial = target.with_name(f".{target.name}.copying")
    try:
        os.link(path, target)
    except OSError:
        try:
            shutil.copyfile(path, partial)
            partial.replace(target)
        except OSError:
            partial.unlink(missing_ok=True)
