"""What the logs of an attempt show about the cause of its end; the patterns stand in `causes`.

The logs are those of the ranks, of the program that starts them, and of the job script. A line counts if nothing after
it shows that the training went on. Words that frighten may stand in warnings and in the data of users: patterns of
errors are looked for only in lines that state one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmlaunch.restart import causes, exceptions
from mmlaunch.restart.exceptions import Raised
from mmlaunch.run.paths import AttemptPaths, RunPaths, rank_of_log

MARKER = "mmlaunch: attempt {number} begins"
"""The line with which an attempt begins in the log of its job script, which all attempts of a job share."""
_BEGINS = re.compile(r"mmlaunch: attempt \d+ begins")
MOST = 262_144
"""Bytes at the end of a log that are looked at."""

_LAST = 4
"""Lines at the end of a log that may be the last words of a program."""

_PREFIX = (
    r"^\s*(?:\[?(?:default|rank)?_?\d*\]?:\s*|\[[^\]]{1,80}\]:?\s*|\d+:\s+|[EWIF]\d{4} [\d:.]+ [^\]]*\]\s*|E\s{2,}|"
    r"\d{4}-\d\d-\d\d[ T][\d:.,]+\S*\s+)*"
)
"""What loggers and launchers write before a line: `[rank3]:`, `12:`, a time."""
_EXCEPTION = re.compile(
    _PREFIX
    + r"((?:\w+\.)*(?:_?[A-Z]\w*)?(?:Error|Exception|Interrupt|Exit|Timeout|Fault|Failure|Mismatch|Invalid|NotFound|"
    r"Abort|Overflow)\b(?:\s*\(.*\))?(?::.*|\s*$)|(?:[a-z_]\w*\.)+(?:_?[A-Z]\w+|error)(?::\s.*|\s*$)|HTTPError.*|"
    r"Unhandled .*)"
)
_STATEMENT = re.compile(
    _PREFIX
    + r"(?:(?:fatal|critical|abort\w*|panic|terminate called|what\(\):|error|failed to|cannot|could not|unable to)\b)|"
    r"(?i:^\s*\S+: (?:fatal )?error:|\b(?:fatal )?error(?: \d+)?: )|\b(?:ERROR|FATAL|CRITICAL)\b|^\s*what\(\):|"
    r"(?i:NCCL (?:WARN|error)|CUDA (?:error|failure)|Cuda failure)|^\s*(?:size mismatch for|Missing key|"
    r"Unexpected key)|"
    r"is killed by signal|\b(?:stopping|aborting|exiting|giving up)\b",
    re.IGNORECASE,
)
_BENIGN = re.compile(
    r"(?i:\bwarn(?:ing)?s?\b(?!.*NCCL)|\b(?:info|debug)\b[:\]\s]|deprecat|will (?:be )?(?:retr|ignor|fall)|"
    r"retry(?:ing)? |"
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
_CONNECTION = re.compile(
    r"[Cc]onnection (?:was )?(?:refused|reset|closed|aborted)|Broken ?[Pp]ipe|Dist(?:Network|Store|Backend)Error|"
    r"TCPStore|PeerLost|"
    r"\bEOFError\b|recvValue|ncclRemoteError|ncclSystemError|ncclInternalError|ncclUnhandledCudaError|NCCL error|"
    r"communicator was aborted|remote process|[Gg]loo|NET/|IBV?_|ibv_|connect(?:ion)? timed out|No route to host|"
    r"[Nn]etwork is unreachable|Host is unreachable|ECONN|EHOSTUNREACH|client socket|ChildFailedError|"
    r"RendezvousConnection|"
    r"SignalException|BrokenProcessPool|exited unexpectedly|^SystemExit|KeyboardInterrupt|ProcessRaised|ProcessExited"
)
"""What a rank says when another one is gone, and what its helper processes say when the rank itself is gone. The cause
stands elsewhere, if anywhere."""
_CHAINED = re.compile(r"^\S*\s*(?:During handling of the above|The above exception was the direct)", re.MULTILINE)
_ENDED = re.compile(r"^srun: error: (\S+): tasks? ([\d,-]+): (.+)$", re.MULTILINE)
_NODE = re.compile(r"Node failure on (?P<a>[\w.-]+)|[Nn]odes? (?P<b>[\w.-]+) (?:failed|is down|not responding)")
_RUNS_ON = re.compile(rb"^rank \d+ of \d+ runs on (\S+), pid", re.MULTILINE)


_SCRAPS = re.compile(r"/pymp-\w+")
"""Temporary folders of helper processes, which are gone when these end."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\[\d{1,2}(?:;\d{1,3}){0,3}m|[│╭╰╮╯]")
"""What programs put around their words for a terminal."""


PLACE = re.compile(r" \[(\S+):(\d+)\]$")
"""How evidence from a log ends: the name of the log, and the number of the line."""


@dataclass(frozen=True)
class Evidence:
    """A line that shows a cause."""

    cause: str
    line: str
    log: Path
    number: int
    """The number of the line in its log."""
    node: str = ""

    def __str__(self) -> str:
        rank = rank_of_log(self.log)
        where = f" ({self.node})" if self.node and rank is not None else ""
        who = f"rank {rank}{where}: " if rank is not None else ""
        return f"{who}{self.line} [{self.log.name}:{self.number}]"


@dataclass(frozen=True)
class _Log:
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
        return not re.search(_PREFIX + r"(?:Traceback|\s)", above) and not above.startswith((" ", "\t", "["))

    @cached_property
    def after_progress(self) -> int:
        """The index of the first line behind which no training is seen. One line of it may have waited in a buffer."""
        steps = [index for index, line in enumerate(self.lines) if _PROGRESS.search(line)]
        return steps[-2] + 1 if len(steps) > 1 else 0


def weigh(attempt: AttemptPaths, after_a_step: bool | None = None) -> Evidence | None:
    """The line that says most about the end of an attempt: that of the first cause in the table, of the rank that fell
    silent first. Exceptions that name none say whether they would come again."""
    logs = list(_logs(attempt))
    after_a_step = _trained(logs) or after_a_step
    named = [evidence for log in logs for evidence in _causes_in(log)]
    raised = [evidence for log in logs for evidence in _raised_in(log, after_a_step)]
    return min([*named, *raised], key=lambda evidence: causes.rank(evidence.cause), default=None)


def trained(attempt: AttemptPaths) -> bool:
    """Whether the log of a rank shows a step of training."""
    return _trained(list(_logs(attempt)))


def _trained(logs: Sequence[_Log]) -> bool:
    return any(_PROGRESS.search(line) for log in logs if rank_of_log(log.path) is not None for line in log.lines)


def in_text(text: str) -> str | None:
    """The name of the cause that the message of an error shows."""
    for cause, log_pattern, error_pattern in causes.with_patterns():
        if any(pattern is not None and pattern.search(text) for pattern in (log_pattern, error_pattern)):
            return cause
    return None


def failed_node(attempt: AttemptPaths) -> Evidence | None:
    """The line by which the scheduler says that a node has failed, and the node."""
    for log in _logs(attempt):
        if rank_of_log(log.path) is None:
            for index, line in enumerate(log.lines):
                if match := _NODE.search(line):
                    node = match["a"] or match["b"]
                    return Evidence(causes.NODE, line.strip()[:200], log.path, log.first + index, node)
    return None


def is_connection(text: str) -> bool:
    """Whether an error only says that another rank is gone."""
    return _CONNECTION.search(text) is not None


def lost_connection(attempt: AttemptPaths) -> str:
    """The line of a rank that lost another one: weak evidence, better than none."""
    for log in _logs(attempt):
        for index, line in enumerate(log.lines):
            if _CONNECTION.search(line):
                return str(Evidence(causes.CRASH, line.strip()[:200], log.path, log.first + index, _node_of(log.path)))
    return ""


def last_words(attempt: AttemptPaths) -> str:
    """The line in which a rank that raised nothing refuses what it was given, before its first step."""
    logs = [log for log in _logs(attempt) if rank_of_log(log.path) is not None]
    for log in logs if not _trained(logs) else ():
        for index, line in list(_telling(log))[: -_LAST - 1 : -1]:
            if exceptions.is_refusal(line) and not _CONNECTION.search(line):
                return str(Evidence(causes.PROGRAM, line.strip()[:200], log.path, log.first + index, _node_of(log.path)))
    return ""


def first_end(attempt: AttemptPaths) -> tuple[str, str]:
    """The task that ended first, and how: after it, srun ends all others, with other codes."""
    with suppress(OSError):
        if first := _ENDED.search(attempt.starter_log.read_text(errors="replace")):
            return f"task {first.group(2)} on {first.group(1)}", first.group(3)
    return "", ""


def _causes_in(log: _Log) -> Iterator[Evidence]:
    """Every line that shows a cause, and what it shows."""
    for index, line in _telling(log):
        states = _EXCEPTION.match(line) or _STATEMENT.search(line)
        for cause, log_pattern, error_pattern in causes.with_patterns():
            shown = log_pattern.search(line) if log_pattern else None
            if shown and not _EXCEPTION.match(line) and _is_quoted(line, shown.start()):
                shown = None
            if shown or (states and error_pattern and error_pattern.search(line)):
                match = _NODE.search(line)
                node = (match["a"] or match["b"]) if match else _node_of(log.path)
                yield Evidence(cause, line.strip()[:200], log.path, log.first + index, node)
                break


def _is_quoted(line: str, at: int) -> bool:
    """Whether a place in a line stands inside quotation marks: in data, in settings, or in the source of a program."""
    before = line[:at]
    return before.count('"') % 2 == 1 or len(re.findall(r"(?<!\w)'|'(?!\w)", before)) % 2 == 1


def _raised_in(log: _Log, after_a_step: bool | None) -> Sequence[Evidence]:
    """The last exception of a log that says more than that another rank is gone."""
    lines = [(index, match) for index, line in _telling(log) if (match := _EXCEPTION.match(line))]
    own = [(i, match) for i, match in lines if not _CONNECTION.search(match.group(1)) and not in_text(match.group(1))]
    if not own:
        return ()
    index, match = own[-1]
    chain = [i for i, _ in lines if i <= index and (i == index or _CHAINED.search("\n".join(log.lines[i + 1 : i + 9])))]
    raised = Raised(
        [_whole(log.lines, i) for i in reversed(chain)],
        "\n".join(log.lines[log.last_traceback : index]),
        after_a_step,
        _is_deliberate(log.lines[:index]),
    )
    cause = causes.PROGRAM if exceptions.comes_again(raised) else causes.CRASH
    return (Evidence(cause, match.group(1).strip()[:200], log.path, log.first + index, _node_of(log.path)),)


def of_record(text: str, traceback: str, after_a_step: bool | None) -> str:
    """What the exception of an error record says, if no words of it name a cause."""
    raised = Raised([text], traceback, after_a_step, _is_deliberate(traceback.rstrip().split("\n")[:-1]))
    return causes.PROGRAM if exceptions.comes_again(raised) else causes.CRASH


def _whole(lines: Sequence[str], index: int) -> str:
    """An exception with its message, which may begin below it."""
    match = _EXCEPTION.match(lines[index])
    text = match.group(1).strip() if match else ""
    return text if not text.endswith(":") else " ".join([text, *(line.strip() for line in lines[index + 1 : index + 4])])


def _is_deliberate(above: Sequence[str]) -> bool:
    """Whether the line of source above an exception raises it, or does so a few lines further up with its arguments."""
    source = [re.sub(_PREFIX, "", line).strip() for line in above[-6:]]
    last = max((i for i, line in enumerate(source) if line.startswith('File "')), default=-1)
    return any(line.startswith("raise ") for line in source[last + 1 :])


def _telling(log: _Log) -> Iterator[tuple[int, str]]:
    """The lines that may say why the attempt ended, and their indices."""
    ignoring = False
    for index, line in enumerate(log.lines):
        if line.lstrip().startswith("Exception ignored in"):
            ignoring = True
        exception = _EXCEPTION.match(line)
        if _SCRAPS.search(line) or (exception and index < log.last_traceback and log.is_free(index)):
            continue
        if index < log.after_progress or not line.strip() or ignoring:
            ignoring = ignoring and not exception
            continue
        following = " ".join(log.lines[index + 1 : index + 3])
        if exception and _HANDLED.search(following) and "Traceback" not in following:
            continue
        if exception or _NCCL.search(line) or not _BENIGN.search(line):
            yield index, line


def _logs(attempt: AttemptPaths) -> Iterator[_Log]:
    """The ends of all logs: the ranks', first of the one that fell silent first; srun's; the job script's."""
    ranks = sorted(attempt.rank_logs, key=_changed)
    others = sorted(path for path in attempt.logs.glob("*") if path.suffix != ".json" and path not in ranks)
    for path in [*ranks, *others]:
        with suppress(OSError):
            yield _end_of(path)
    for path in RunPaths(attempt.root.parent.parent).batch_logs:
        with suppress(OSError):
            log = _end_of(path)
            begins = [i for i, line in enumerate(log.lines) if line == MARKER.format(number=attempt.number)]
            if begins:
                first = begins[-1]
                after = (i for i, line in enumerate(log.lines) if i > first and _BEGINS.match(line))
                yield _Log(path, log.lines[first : next(after, None)], log.first + first)


def _end_of(path: Path) -> _Log:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        left, before = max(0, size - MOST), 0
        while left:
            block = file.read(min(left, 1 << 20))
            before, left = before + block.count(b"\n"), left - len(block)
        text = _COLOURS.sub("", file.read().decode(errors="replace"))
    return _Log(path, tuple(text.split("\n")), before + 1)


def _node_of(log: Path) -> str:
    """The node of a rank, which says so in its first lines."""
    if rank_of_log(log) is None:
        return ""
    with suppress(OSError), log.open("rb") as file:
        if match := _RUNS_ON.search(file.read(16_384)):
            return match.group(1).decode(errors="replace")
    return ""


def _changed(log: Path) -> tuple[float, str]:
    return log.stat().st_mtime, log.name
