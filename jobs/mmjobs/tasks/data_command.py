"""What the commands on files of rows share: how they are opened, progress, and what is left out."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mmjobs.data.example import BadRow
from mmjobs.data.formats.registry import FORMATS, Format, recognised
from mmjobs.data.readers.rows import Part
from mmlaunch.errors import BadInput, UserError
from mmlaunch.recipe.data import FORMATS as RECIPE_FORMATS
from mmlaunch.recipe.data import Source

LISTED = 20
"""So many rows that are left out are listed; all are counted."""


def opened(path: str, format: str, images: str | None, split: str | None = None) -> tuple[Format, Part]:
    """The rows of a file or folder, whatever its format says of their images; each set of a meta file once."""
    readable = [name for name, kind in RECIPE_FORMATS.items() if not kind.generated]
    if format not in readable:
        raise UserError(f"--from: no file is in the format {format}; one of {', '.join(readable)}")
    try:
        source = Source(path=path, images=images, split=split)
    except ValueError as error:  # pydantic's: a path that no recipe could hold either
        raise UserError(f"{path!r}: is no path that can be read: {str(error).splitlines()[2].strip()}") from None
    kind = FORMATS[recognised(source) if format == "auto" else format]
    return kind, Part(path, kind.rows(source))


class LeftOut:
    """Rows that were left out, counted by why, with the first few in words."""

    def __init__(self, skip: bool) -> None:
        self.skip, self.counts, self.reasons = skip, Counter[str](), list[dict[str, str]]()

    def bad(self, error: BadRow) -> None:
        """A row that cannot be read: an error, unless the user says `--on-bad skip`."""
        if not self.skip:
            raise BadInput(f"{error}; mend it, or leave such rows out with --on-bad skip")
        self.add("bad", str(error.origin), error.what)

    def add(self, why: str, row: str, reason: str) -> None:
        self.counts[why] += 1
        if len(self.reasons) < LISTED:
            self.reasons.append({"row": row, "why": why, "reason": reason})

    def facts(self) -> dict[str, Any]:
        return {"left_out": dict(self.counts), "reasons": self.reasons}


class Progress:
    """Rows done, on standard error, for a terminal."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done, self.shown = what, total, 0, time.monotonic()

    def __call__(self) -> None:
        self.done += 1
        if sys.stderr.isatty() and time.monotonic() - self.shown > 0.2:
            self.shown = time.monotonic()
            print(f"\r{self.what}: {self.done:,} of {self.total:,} rows", end="", file=sys.stderr, flush=True)


def add_source(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which rows."""
    parser.add_argument("input")
    parser.add_argument("--from", dest="format", default="auto")
    parser.add_argument("--images")
    parser.add_argument("--split")
    parser.add_argument("--on-bad", choices=("error", "skip"), default="error")
    parser.add_argument("--overwrite", action="store_true")


def must_differ(input: str, output: Path) -> None:
    """Refuse to write over what is read."""
    if Path(input).expanduser().exists() and output.exists() and output.samefile(Path(input).expanduser()):
        raise UserError(f"{output}: is the file that is read; name another one")
