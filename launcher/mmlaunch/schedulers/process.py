"""Processes of this machine, each told apart from a later one with the same number."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any


def identity(pid: int) -> dict[str, Any]:
    """The fields by which an event names a process: host, machine, number and the moment it began."""
    return {"host": socket.gethostname(), "machine": machine(), "pid": pid, "began": _began(pid)}


@cache
def machine() -> str:
    """This boot of this machine, and the namespace in which its processes are numbered; empty if not on Linux.

    A host name says less: it changes while a machine runs, and containers share it.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def here(record: Mapping[str, Any]) -> bool | None:
    """Whether a process is, or was, one of this machine since it was booted; None if it is on another one.

    False: this machine was booted since then, and the process ended with the boot before.
    """
    same_host = record.get("host") == socket.gethostname()
    then, now = str(record.get("machine") or ""), machine()
    if not (then and now):  # an event of an older version
        return True if same_host else None
    if then == now:
        return True
    rebooted = then.partition(" ")[0] != now.partition(" ")[0]
    return False if same_host and rebooted else None


def alive(record: Mapping[str, Any]) -> bool | None:
    """Whether that process, or any of the session that it led, still runs; None if it is on another machine."""
    if not (where := here(record)):
        return where
    pid = int(record.get("pid", 0))
    began = _began(pid)
    return began == record.get("began") if began is not None else pid > 0 and bool(members(record))


def members(record: Mapping[str, Any]) -> list[int]:
    """The processes of the session that this process led, itself included; none once its number is another's."""
    session = int(record.get("pid", 0))
    if session <= 0 or _began(session) not in (None, record.get("began")):
        return []  # 0: processes that were started outside of this container
    return [pid for pid, values in _processes() if int(values[3]) == session]


def children(parent: int) -> list[int]:
    """The processes that this one started."""
    return [pid for pid, values in _processes() if int(values[1]) == parent]


def running_below(folder: Path) -> Iterator[int]:
    """The processes that run a script in one of the folders below this one."""
    for pid, _ in _processes():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
            if len(words) > 1 and Path(words[1]).parent.parent == folder:
                yield pid


def die_with_parent(number: signal.Signals) -> None:
    """Ask the kernel for this signal when the parent goes, however it goes (prctl(2), PR_SET_PDEATHSIG)."""
    with contextlib.suppress(OSError, AttributeError):  # not on Linux
        ctypes.CDLL(None).prctl(1, int(number))


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Every living process, and the fields of its stat after its name (proc(5))."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            values = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if values and values[0] not in "ZX":
            yield int(entry.name), values


def _began(pid: int) -> int | None:
    """The start of a process in clock ticks after boot; a zombie no longer runs."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _exists(pid)
    values = stat.rpartition(")")[2].split()
    return None if values[0] in "ZX" else int(values[19])


def _exists(pid: int) -> int | None:
    """Without /proc: only whether it is there."""
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return 0
