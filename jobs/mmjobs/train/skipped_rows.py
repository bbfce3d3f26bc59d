"""The list of rows that a run leaves out, in its directory."""

from __future__ import annotations

import json
from collections.abc import Sequence

from mmjobs.data.example import BadRow
from mmjobs.data.survey import lines
from mmjobs.data.survey_rows import LeftOut
from mmlaunch.run.files import publish
from mmlaunch.run.paths import RunPaths


def write(paths: RunPaths, left: Sequence[LeftOut]) -> None:
    """Write the rows that the survey left out; every attempt writes the same, from the same data."""
    found = list(lines(left))
    if found or paths.skipped.exists():
        paths.skipped.parent.mkdir(exist_ok=True)
        publish(paths.skipped, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found))


def add(paths: RunPaths, rows: Sequence[BadRow]) -> None:
    """Add rows whose images turned out to be damaged when they were decoded."""
    if rows:
        paths.skipped.parent.mkdir(exist_ok=True)
        listed = paths.skipped.read_text() if paths.skipped.exists() else ""
        with paths.skipped.open("a") as file:
            for row in rows:
                line = json.dumps({"row": row.sample, "why": "bad", "reason": row.what}, ensure_ascii=False) + "\n"
                if line not in listed:  # they come again in each epoch
                    file.write(line)
                    listed += line
