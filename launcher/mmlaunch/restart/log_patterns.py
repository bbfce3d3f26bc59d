"""What the logs of an attempt show about the cause of its end; the patterns stand in `causes`.

Words that frighten may stand in warnings and in the data of users: patterns of errors are looked for only in lines that
state one. Exceptions that hold none of these words are judged in `exceptions`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mmlaunch.restart import causes, exceptions, log_lines
from mmlaunch.restart.exceptions import Raised
from mmlaunch.restart.log_lines import EXCEPTION, STATEMENT, Log, node_of
from mmlaunch.run.paths import AttemptPaths, rank_of_log

_LAST = 4
"""Lines at the end of a log that may be the last words of a program."""

_CONNECTION = re.compile(
    r"[Cc]onnection (?:was )?(?:refused|reset|closed|aborted)|Broken ?[Pp]ipe|Dist(?:Network|Store|Backend)Error|"
    r"TCPStore|PeerLost|"
    r"\bEOFError\b|recvValue|ncclRemoteError|ncclSystemError|ncclInternalError|ncclUnhandledCudaError|NCCL error|"
    r"communicator was aborted|remote process|[Gg]loo|NET/|IBV?_|ibv_|connect(?:ion)? timed out|No route to host|"
    r"[Nn]etwork is unreachable|Host is unreachable|ECONN|EHOSTUNREACH|client socket|ChildFailedError|"
    r"RendezvousConnection|"
    r"SignalException|BrokenProcessPool|exited unexpectedly|"
    r"[Ss]ee (?:the )?(?:root cause|error|exception|traceback|log|output)s? above|"
    r"^SystemExit|KeyboardInterrupt|ProcessRaised|ProcessExited"
)
"""What a rank says when another one is gone, and what its helper processes say when the rank itself is gone. The cause
stands elsewhere, if anywhere."""
_CHAINED = re.compile(r"^\S*\s*(?:During handling of the above|The above exception was the direct)", re.MULTILINE)
_BEGINS = re.compile(r"(?<=: )[A-Za-z](?=[a-z]+\b)")
"""The letter with which a message begins, behind what has spoken."""
_ENDED = re.compile(r"^srun: error: (\S+): tasks? ([\d,-]+): (.+)$", re.MULTILINE)
_NODE = re.compile(r"Node failure on (?P<a>[\w.-]+)|[Nn]odes? (?P<b>[\w.-]+) (?:failed|is down|not responding)")
_LOST = re.compile(r"^srun: error: Node failure on (?P<a>[\w.-]+)\s*$")
"""The whole line of an srun that waits for a node no longer."""

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


def weigh(attempt: AttemptPaths, after_a_step: bool | None = None) -> Evidence | None:
    """The line that says most about the end of an attempt: that of the first cause in the table, of the rank that fell
    silent first. Exceptions that name none say whether they would come again."""
    logs = list(log_lines.read(attempt))
    after_a_step = log_lines.trained(logs) or after_a_step
    named = [evidence for log in logs for evidence in _causes_in(log)]
    raised = [evidence for log in logs for evidence in _raised_in(log, after_a_step)]
    return min([*named, *raised], key=lambda evidence: causes.rank(evidence.cause), default=None)


def trained(attempt: AttemptPaths) -> bool:
    """Whether the log of a rank shows a step of training."""
    return log_lines.trained(list(log_lines.read(attempt)))


def in_text(text: str) -> str | None:
    """The name of the cause that the message of an error shows."""
    for spelling in _spellings(text):
        for cause, log_pattern, error_pattern in causes.with_patterns():
            if any(pattern is not None and pattern.search(spelling) for pattern in (log_pattern, error_pattern)):
                return cause
    return None


def failed_node(attempt: AttemptPaths) -> Evidence | None:
    """The line by which the scheduler says that a node has failed, and the node."""
    return _said_by_scheduler(attempt, causes.NODE, _NODE)


def lost_node(attempt: AttemptPaths) -> Evidence | None:
    """The line in which srun says that it has lost a node of the ranks: it then ends with 0, whatever they do."""
    lost = _said_by_scheduler(attempt, causes.NODE, _LOST)
    return lost if lost is not None and lost.log == attempt.starter_log else None


def cancellation(attempt: AttemptPaths) -> Evidence | None:
    """The line by which the scheduler says that somebody has cancelled the job."""
    said = causes.named(causes.CANCELLED).log_pattern
    return _said_by_scheduler(attempt, causes.CANCELLED, said) if said else None


def _said_by_scheduler(attempt: AttemptPaths, cause: str, pattern: re.Pattern[str]) -> Evidence | None:
    """The first line with these words in a log that is not a rank's."""
    for log in log_lines.read(attempt):
        if rank_of_log(log.path) is None:
            for index, line in enumerate(log.lines):
                if match := pattern.search(line):
                    groups = match.groupdict()
                    return _evidence(cause, log, index, line, groups.get("a") or groups.get("b") or "")
    return None


def is_connection(text: str) -> bool:
    """Whether an error only says that another rank is gone."""
    return _CONNECTION.search(text) is not None


def lost_connection(attempt: AttemptPaths) -> str:
    """The line of a rank that lost another one: weak evidence, better than none."""
    for log in log_lines.read(attempt):
        for index, line in enumerate(log.lines):
            if _CONNECTION.search(line):
                return str(_evidence(causes.CRASH, log, index, line))
    return ""


def last_words(attempt: AttemptPaths) -> str:
    """The line in which a rank that raised nothing refuses what it was given, before its first step."""
    logs = [log for log in log_lines.read(attempt) if rank_of_log(log.path) is not None]
    for log in logs if not log_lines.trained(logs) else ():
        for index, line in list(log.telling())[: -_LAST - 1 : -1]:
            if exceptions.is_refusal(line) and not _CONNECTION.search(line):
                return str(_evidence(causes.PROGRAM, log, index, line))
    return ""


def first_end(attempt: AttemptPaths) -> tuple[str, str]:
    """The task that ended first, and how: after it, srun ends all others, with other codes."""
    with suppress(OSError):
        if first := _ENDED.search(attempt.starter_log.read_text(errors="replace")):
            return f"task {first.group(2)} on {first.group(1)}", first.group(3)
    return "", ""


def _evidence(cause: str, log: Log, index: int, line: str, node: str = "") -> Evidence:
    return Evidence(cause, line.strip()[:200], log.path, log.first + index, node or node_of(log.path))


def _causes_in(log: Log) -> Iterator[Evidence]:
    """Every line that shows a cause, and what it shows."""
    for index, line in log.telling():
        if cause := _cause_of(line):
            match = _NODE.search(line)
            yield _evidence(cause, log, index, line, (match["a"] or match["b"]) if match else "")


def _cause_of(line: str) -> str | None:
    """The name of the cause that a line of a log shows."""
    exception = EXCEPTION.match(line)
    states = exception or STATEMENT.search(line)
    for spelling in _spellings(line) if states else (line,):
        for cause, log_pattern, error_pattern in causes.with_patterns():
            shown = log_pattern.search(spelling) if log_pattern else None
            if shown and (exception or not _is_quoted(line, shown.start())):
                return cause
            if states and error_pattern and error_pattern.search(spelling):
                return cause
    return None


def _spellings(text: str) -> Iterator[str]:
    """A text as it stands; then, as programs differ in it, with the other of small and capital letters where a message
    begins."""
    yield text
    yield _BEGINS.sub(lambda letter: letter[0].swapcase(), text)


def _is_quoted(line: str, at: int) -> bool:
    """Whether a place in a line stands inside quotation marks: in data, in settings, or in the source of a program."""
    before = line[:at]
    return before.count('"') % 2 == 1 or len(re.findall(r"(?<!\w)'|'(?!\w)", before)) % 2 == 1


def _raised_in(log: Log, after_a_step: bool | None) -> Sequence[Evidence]:
    """The last exception of a log that says more than that another rank is gone."""
    lines = [(index, match) for index, line in log.telling() if (match := EXCEPTION.match(line))]
    own = [(i, match) for i, match in lines if not _CONNECTION.search(match.group(1)) and not in_text(match.group(1))]
    if not own:
        return ()
    index, match = own[-1]
    before = [i for i, _ in lines if i < index and _CHAINED.search("\n".join(log.lines[i + 1 : i + 9]))]
    raised = Raised(
        [_whole(log.lines, i) for i in (index, *reversed(before))],
        "\n".join(log.lines[log.last_traceback : index]),
        after_a_step,
    )
    cause = causes.PROGRAM if exceptions.comes_again(raised) else causes.CRASH
    return (_evidence(cause, log, index, match.group(1)),)


def of_record(text: str, traceback: str, after_a_step: bool | None) -> str:
    """What the exception of an error record says, if no words of it name a cause."""
    raised = Raised([text], traceback, after_a_step)
    return causes.PROGRAM if exceptions.comes_again(raised) else causes.CRASH


def _whole(lines: Sequence[str], index: int) -> str:
    """An exception with its message, which may begin below it."""
    match = EXCEPTION.match(lines[index])
    text = match.group(1).strip() if match else ""
    below = lines[index + 1 : index + 4] if text.endswith(":") else ()
    return " ".join([text, *(line.strip() for line in below)])
