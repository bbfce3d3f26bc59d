"""Clues: what error records, the ends of logs, and Slurm's words give away about the cause of an ending."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from mmlaunch.run.paths import AttemptPaths

Cause = Literal[
    "done",
    "cancelled",
    "saved",
    "time limit",
    "preempted",
    "node",
    "hang",
    "stop",
    "bad input",
    "out of memory",
    "disk full",
    "import",
    "crash",
]

BY_RECORD: dict[str, Cause] = {
    "ImportError": "import", "ModuleNotFoundError": "import", "SyntaxError": "import",
    "OutOfMemoryError": "out of memory", "MemoryError": "out of memory", "BadInput": "bad input",
    "Hang": "hang", "UnfitNode": "node", "DiskFull": "disk full",
}  # fmt: skip
"""Causes by the type of the error that a rank recorded: srun's exit code is that of the rank that was killed last."""

BY_STATE: dict[str, Cause] = {"NODE_FAIL": "node", "BOOT_FAIL": "node", "LAUNCH_FAILED": "node"}
"""Causes by Slurm's word for a job that it put back into the queue. All others are preemptions, or a human's wish."""

_IN_TEXT: tuple[tuple[Cause, re.Pattern[str]], ...] = (
    (
        "out of memory",
        re.compile(
            r"CUDA out of memory|torch\.OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|"
            r"DefaultCPUAllocator: can't allocate|oom.kill|OOM Killed|Out of memory: Kill|: Out Of Memory$|"
            r"[Ee]xceeded (?:job |step )?memory limit",
            re.MULTILINE,
        ),
    ),
    (
        "node",
        re.compile(
            r"NVRM: Xid|\bXid \(PCI|[Uu]ncorrectable ECC|double.bit ECC|NVLink error|fallen off the bus|"
            r"Node failure on|CUDA error: (?:unspecified launch failure|unknown error)|No CUDA GPUs are available|"
            r"CUDA-capable device\(s\) is/are busy",
        ),
    ),
    ("hang", re.compile(r"Watchdog caught collective operation timeout|NCCL.* (?:timed out|timeout)", re.IGNORECASE)),
    ("disk full", re.compile(r"No space left on device|Disk quota exceeded")),
)
_CONNECTION = re.compile(
    r"[Cc]onnection (?:refused|reset|closed)|Broken pipe|DistNetworkError|TCPStore|PeerLost|^EOFError$"
)
"""What ranks say when another one is gone, and a rank's own helpers when it is: the cause stands elsewhere, if
anywhere."""
_EXCEPTION = re.compile(r"^(?:\[rank\d+\]: )?((?:\w+\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b.*)$", re.MULTILINE)

SRUN = "srun.out"
_ENDED = re.compile(r"^srun: error: (\S+): tasks? ([\d,-]+): (.+)$", re.MULTILINE)


def in_text(text: str) -> tuple[Cause, str] | None:
    """The cause that a text gives away, and its line that does."""
    for cause, pattern in _IN_TEXT:
        if found := pattern.search(text):
            return cause, _line(text, found.start())
    return None


def in_logs(attempt: AttemptPaths) -> tuple[Cause, str] | None:
    """The cause that the ends of an attempt's logs give away, and what shows it.

    A cause with a name outweighs an exception without one, whichever rank it befell.
    """
    texts = dict(_ends(attempt))
    for cause, pattern in _IN_TEXT:
        for log, text in texts.items():
            if found := pattern.search(text):
                return cause, f"{log.name}: {_line(text, found.start())}"
    raised = [(log, lines[-1]) for log, text in texts.items() if (lines := _EXCEPTION.findall(text))]
    for log, line in raised:
        if not _CONNECTION.search(line):
            return "crash", f"{log.stem.replace('-', ' ')}: {line[:200]}"
    return None


def lost_connection(attempt: AttemptPaths) -> str:
    """What a rank said when another one was gone; better than nothing."""
    for log, text in _ends(attempt):
        if found := _CONNECTION.search(text):
            return f"{log.name}: {_line(text, found.start())}"
    return ""


def killed(attempt: AttemptPaths) -> str:
    """The task that was the first to end, if that was by signal 9: srun ends all others, with other codes, after it."""
    with suppress(OSError):
        if (first := _ENDED.search((attempt.logs / SRUN).read_text(errors="replace"))) and first.group(3) == "Killed":
            return f"task {first.group(2)} on {first.group(1)}"
    return ""


def _ends(attempt: AttemptPaths, most: int = 65536) -> Iterator[tuple[Path, str]]:
    """The ends of all logs, that of the rank that fell silent first before the others; then what srun said."""
    logs = [*sorted(attempt.logs.glob("rank-*.out"), key=_changed), *attempt.logs.glob(SRUN)]
    for log in logs:
        try:
            with log.open("rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - most))
                yield log, file.read().decode(errors="replace")
        except OSError:
            continue


def _changed(log: Path) -> tuple[float, str]:
    return log.stat().st_mtime, log.name


def _line(text: str, at: int) -> str:
    return text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0].strip()[:200]
