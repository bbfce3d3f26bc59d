"""The lines at the ends of an attempt's logs that may say why it ended.

The logs are those of the ranks, of the program that starts them, and of the job script. A line counts if nothing after
it shows that the training went on, and if it is no warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmlaunch.run.job_logs import batch_logs
from mmlaunch.run.paths import AttemptPaths, RunPaths, rank_of_log

MARKER = "mmlaunch: attempt {number} begins"
"""The line with which an attempt begins in the log of its job script, which all attempts of a job share."""
_BEGINS = re.compile(r"mmlaunch: attempt \d+ begins")
MOST = 262_144
"""Bytes at the end of a log that are looked at."""

PREFIX = (
    r"^\s*(?:\[?(?:default|rank)?_?\d*\]?:\s*|\[[^\]]{1,80}\]:?\s*|\d+:\s+|[EWIF]\d{4} [\d:.]+ [^\]]*\]\s*|E\s{2,}|"
    r"\d{4}-\d\d-\d\d[ T][\d:.,]+\S*\s+|\(\w[^()]{0,80}\bpid=\d+[^()]{0,40}\)\s*|"
    r"[A-Z]{4,8} \d\d-\d\d [\d:.,]+ \[[^\]]{1,80}\]\s*)*"
)
"""What loggers and launchers write before a line: `[rank3]:`, `12:`, a time, `(Worker pid=7)`."""
EXCEPTION = re.compile(
    PREFIX
    + r"((?:\w+\.)*(?:_?[A-Z]\w*)?(?:Error|Exception|Interrupt|Exit|Timeout|Fault|Failure|Mismatch|Invalid|NotFound|"
    r"Abort|Overflow)\b(?:\s*\(.*\))?(?::.*|\s*$)|(?:[a-z_]\w*\.)+(?:_?[A-Z]\w+|error)(?::\s.*|\s*$)|HTTPError.*|"
    r"Unhandled .*)"
)
STATEMENT = re.compile(
    PREFIX
    + r"(?:(?:fatal|critical|abort\w*|panic|terminate called|what\(\):|error|failed to|cannot|could not|unable to)\b)|"
    r"(?i:^\s*\S+: (?:fatal )?error:|\b(?:fatal )?error(?: \d+)?: )|\b(?:ERROR|FATAL|CRITICAL)\b|^\s*what\(\):|"
    r"(?i:NCCL (?:WARN|error)|CUDA (?:error|failure)|Cuda failure)|^\s*(?:size mismatch for|Missing key|"
    r"Unexpected key)|"
    r"^\s*(?:\w+::)+\w+: |is killed by signal|\b(?:stopping|aborting|exiting|giving up)\b",
    re.IGNORECASE,
)
_BENIGN = re.compile(
    r"(?i:\bwarn(?:ing)?s?\b(?!.*NCCL)|\b(?:info|debug)\b[:\]\s]|deprecat|will (?:be )?(?:retr|ignor|fall)|"
    r"retry(?:ing)? |going to \S+ instead|"
    r"attempt \d+ of \d+|succeeded|recovered|\bignor(?:ed|ing)\b|\bskipp(?:ed|ing)\b|falling back|fallback|"
    r"\b(?:0|no|without) (?:errors?|failures?)|may (?:cause|run|lead|be)|might |can cause|to avoid|tip:|hint:|note:)"
)
_HANDLED = re.compile(
    r"(?i:falling back|fallback|ignor(?:ed|ing)|continu(?:e|ing)|skipp(?:ed|ing)|retrying|recovered|succeeded|"
    r"using .* instead)"
)
_NCCL = re.compile(r"NCCL WARN")
_PROGRESS = re.compile(
    r"\bstep[ =:]+\d+(?:/\d+)?\b.*\bloss\b|\bloss[ =:'\"]+[\d.]+|\bsaved step \d+|"
    r"^\s*(?!map|filter|token|load|download|generat|fetch|resolv|prepar|creat)\S*\s*\d{1,3}%\|.*\d+/\d+|"
    r"\biter(?:ation)?[ =:]+\d+.*\b(?:loss|lr|time)\b",
    re.IGNORECASE,
)
_RUNS_ON = re.compile(rb"^rank \d+ of \d+ runs on (\S+), pid", re.MULTILINE)
_SCRAPS = re.compile(r"/pymp-\w+")
"""Temporary folders of helper processes, which are gone when these end."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\[\d{1,2}(?:;\d{1,3}){0,3}m|[│╭╰╮╯]")
"""What programs put around their words for a terminal."""


@dataclass(frozen=True)
class Log:
    """The end of a log, line by line."""

    path: Path
    lines: tuple[str, ...]
    first: int
    """The number of the first of these lines."""

    @cached_property
    def last_traceback(self) -> int:
        """The index of the line that begins the last traceback."""
        begins = [index for index, line in enumerate(self.lines) if "Traceback (most recent call last)" in line]
        return begins[-1] if begins else 0

    def is_free(self, index: int) -> bool:
        """Whether a line does not belong to a traceback: it may be data that look like an error."""
        above = next((line for line in reversed(self.lines[:index]) if line.strip()), "")
        return not re.search(PREFIX + r"(?:Traceback|\s)", above) and not above.startswith((" ", "\t", "["))

    @cached_property
    def after_progress(self) -> int:
        """The index of the first line behind which no training is seen. One line of it may have waited in a buffer."""
        steps = [index for index, line in enumerate(self.lines) if _PROGRESS.search(line)]
        return steps[-2] + 1 if len(steps) > 1 else 0

    def telling(self) -> Iterator[tuple[int, str]]:
        """The lines that may say why the attempt ended, and their indices."""
        ignoring = False
        for index, line in enumerate(self.lines):
            if line.lstrip().startswith("Exception ignored in"):
                ignoring = True
            exception = EXCEPTION.match(line)
            if _SCRAPS.search(line) or (exception and index < self.last_traceback and self.is_free(index)):
                continue
            if index < self.after_progress or not line.strip() or ignoring:
                ignoring = ignoring and not exception
                continue
            following = " ".join(self.lines[index + 1 : index + 3])
            if exception and _HANDLED.search(following) and "Traceback" not in following:
                continue
            if exception or _NCCL.search(line) or not _BENIGN.search(line):
                yield index, line


def trained(logs: Sequence[Log]) -> bool:
    """Whether the log of a rank shows a step of training."""
    return any(_PROGRESS.search(line) for log in logs if rank_of_log(log.path) is not None for line in log.lines)


def read(attempt: AttemptPaths) -> Iterator[Log]:
    """The ends of all logs: the ranks', first of the one that fell silent first; srun's; the job script's."""
    ranks = sorted(attempt.rank_logs, key=_changed)
    others = sorted(path for path in attempt.logs.glob("*") if path.suffix != ".json" and path not in ranks)
    for path in [*ranks, *others]:
        with suppress(OSError):
            yield _end_of(path)
    for path in batch_logs(RunPaths(attempt.root.parent.parent)):
        with suppress(OSError):
            log = _end_of(path)
            begins = [i for i, line in enumerate(log.lines) if line == MARKER.format(number=attempt.number)]
            if begins:
                first = begins[-1]
                after = (i for i, line in enumerate(log.lines) if i > first and _BEGINS.match(line))
                yield Log(path, log.lines[first : next(after, None)], log.first + first)


def _end_of(path: Path) -> Log:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        left, before = max(0, size - MOST), 0
        while left:
            block = file.read(min(left, 1 << 20))
            before, left = before + block.count(b"\n"), left - len(block)
        text = _COLOURS.sub("", file.read().decode(errors="replace"))
    return Log(path, tuple(text.split("\n")), before + 1)


def node_of(log: Path) -> str:
    """The node of a rank, which says so in its first lines."""
    if rank_of_log(log) is None:
        return ""
    with suppress(OSError), log.open("rb") as file:
        if match := _RUNS_ON.search(file.read(16_384)):
            return match.group(1).decode(errors="replace")
    return ""


def _changed(log: Path) -> tuple[float, str]:
    return log.stat().st_mtime, log.name
