"""What the ends of an attempt's logs show about the cause of its end; the patterns stand in `causes`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mmlaunch.restart import causes
from mmlaunch.run.paths import AttemptPaths

_CONNECTION = re.compile(
    r"[Cc]onnection (?:refused|reset|closed)|Broken pipe|DistNetworkError|TCPStore|PeerLost|^EOFError$"
)
"""What a rank says when another one is gone, and what its helper processes say when the rank itself is gone. The cause
stands elsewhere, if anywhere."""
_EXCEPTION = re.compile(r"^(?:\[rank\d+\]: )?((?:\w+\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b.*)$", re.MULTILINE)

_ENDED = re.compile(r"^srun: error: (\S+): tasks? ([\d,-]+): (.+)$", re.MULTILINE)


def in_text(text: str) -> tuple[str, str] | None:
    """The name of the cause that a text shows, and the line that shows it."""
    for cause, pattern in causes.with_log_patterns():
        if match := pattern.search(text):
            return cause, _line(text, match.start())
    return None


def in_logs(attempt: AttemptPaths) -> tuple[str, str] | None:
    """The name of the cause that the ends of an attempt's logs show, and the line that shows it.

    A cause with a pattern outweighs any other exception, whichever rank's log holds it.
    """
    texts = dict(_ends(attempt))
    for cause, pattern in causes.with_log_patterns():
        for log, text in texts.items():
            if match := pattern.search(text):
                return cause, f"{log.name}: {_line(text, match.start())}"
    raised = [(log, lines[-1]) for log, text in texts.items() if (lines := _EXCEPTION.findall(text))]
    for log, line in raised:
        if not _CONNECTION.search(line):
            return causes.CRASH, f"{log.stem.replace('-', ' ')}: {line[:200]}"
    return None


def lost_connection(attempt: AttemptPaths) -> str:
    """The line of a rank that lost another one: weak evidence, better than none."""
    for log, text in _ends(attempt):
        if match := _CONNECTION.search(text):
            return f"{log.name}: {_line(text, match.start())}"
    return ""


def killed(attempt: AttemptPaths) -> str:
    """The task that ended first, if signal 9 ended it. After it, srun ends all others, with other codes."""
    with suppress(OSError):
        first = _ENDED.search(attempt.starter_log.read_text(errors="replace"))
        if first and first.group(3) == "Killed":
            return f"task {first.group(2)} on {first.group(1)}"
    return ""


def _ends(attempt: AttemptPaths, most: int = 65536) -> Iterator[tuple[Path, str]]:
    """The ends of all logs: those of the ranks, the one that fell silent first before the others, then srun's."""
    logs = [*sorted(attempt.rank_logs, key=_changed), attempt.starter_log]
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
