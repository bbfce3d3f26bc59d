"""A corpus of attempt ends, each with its cause: what must not be retried is never retried."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mmlaunch.restart import causes, policy
from mmlaunch.run.paths import AttemptPaths


@dataclass
class End:
    """One attempt, as it was left."""

    cause: str
    exit_code: int
    place: int
    logs: dict[str, list[str]] = field(default_factory=dict)


def read(path: Path) -> list[End]:
    ends: list[End] = []
    lines: list[str] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := re.fullmatch(r"=== ([\w ]+) \| (\d+)", line):
            ends.append(End(match[1], int(match[2]), number))
        elif line.startswith("--- "):
            lines = ends[-1].logs.setdefault(line[4:], [])
        elif ends:
            lines.append(line)
    return ends


CORPUS = read(Path(__file__).with_name("attempt_ends.txt"))


def ending(end: End, folder: Path) -> policy.Ending:
    attempt = AttemptPaths(folder / "1")
    attempt.logs.mkdir(parents=True)
    for age, (name, lines) in enumerate(end.logs.items()):
        (attempt.logs / name).write_text("\n".join(lines) + "\n")
        os.utime(attempt.logs / name, (1_800_000_000 + age,) * 2)
    return policy.classify(end.exit_code, attempt, [])


@pytest.mark.parametrize("end", CORPUS, ids=lambda end: f"{end.place}-{end.cause}")
def test_an_end(end: End, tmp_path: Path) -> None:
    found = ending(end, tmp_path)
    assert found.cause == end.cause, found.evidence
    shown = re.fullmatch(r"(?:rank \d+(?: \([^)]*\))?: )?(.*) \[(\S+):(\d+)\]", found.evidence)
    if shown:  # the deciding line stands there
        line = (tmp_path / "1" / "logs" / shown[2]).read_text().splitlines()[int(shown[3]) - 1]
        assert shown[1] in line


def test_the_corpus_has_every_cause_that_logs_can_show() -> None:
    shown = {cause.name for cause in causes.TABLE if cause.log_pattern or cause.error_pattern}
    assert len(CORPUS) >= 80 and {end.cause for end in CORPUS} >= shown
