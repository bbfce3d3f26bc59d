"""The task `convert`: the rows of one format as rows of another."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmjobs.data.example import Answer, BadRow, Example
from mmjobs.data.formats.internvl import meta_of
from mmjobs.data.formats.registry import FORMATS, Format
from mmjobs.data.readers.rows import LOOK, Part
from mmjobs.data.writers.files import RowFile, free
from mmjobs.data.writers.fit import PARTS, Unfit, fitted
from mmjobs.data.writers.images import Placed
from mmjobs.data.writers.words import Facts
from mmjobs.tasks.data_command import LeftOut, Progress, add_source, must_differ, opened
from mmjobs.tasks.program import end
from mmlaunch.errors import BadInput, UserError
from mmlaunch.run.files import explained, publish

WRITTEN = {name: kind.row_of for name, kind in FORMATS.items() if kind.row_of is not None}


def convert(given: argparse.Namespace) -> dict[str, Any]:
    """Read, fit and write one row after the other; the new file appears when all of them are in it."""
    if given.to not in WRITTEN:
        raise UserError(f"--to: rows of the format {given.to} are not written; one of {', '.join(WRITTEN)}")
    target, out = FORMATS[given.to], Path(given.output)
    file = _places(given, target, out)
    origin, part = opened(given.input, given.format, given.images, given.split)
    images = Placed(file, target.holds.embeds, given.absolute)
    left_out, dropped = LeftOut(given.on_bad == "skip"), Counter[str]()
    moved = Progress("convert", len(part.rows))
    with RowFile(file, _columns(target, part)) as rows:
        for place in range(len(part.rows)):
            moved()
            try:
                example = part.rows[place]
                if given.truths_as_answers and example.truths and not example.answers:
                    example = replace(example, answers=(Answer(example.truths[0]),), truths=())
                if (kept := _fit(example, target, given.drop, left_out, dropped)) is not None:
                    facts = Facts.of(part.values(place), place)
                    rows.write(WRITTEN[target.name](kept, images.names(kept), facts))
            except BadRow as error:
                left_out.bad(error)
        if not rows.count:
            first = f": {one['row']}: {one['reason']}" if (one := next(iter(left_out.reasons), None)) else ""
            raise BadInput(f"{given.input}: no row is left to write{first}")
    if file != out:
        meta = meta_of(file, rows.count, images.folder if images.short and not images.full else "")
        with explained(f"{out}: cannot be written"):
            publish(out, json.dumps(meta, indent=2) + "\n")
    where = {"folder": images.folder, "short": images.short, "full": images.full, "made": images.made}
    result = {"rows": rows.count, "from": origin.name, "to": target.name, "output": str(out), "images": where}
    return {**result, "dropped": dict(dropped), **left_out.facts()}


def _places(given: argparse.Namespace, target: Format, out: Path) -> Path:
    """Where the rows go: `internvl` names a meta file, and its rows are in a file beside it."""
    kinds: tuple[str, ...] = (".jsonl", ".json", ".ndjson")
    if target.name == "internvl":
        free(out, given.overwrite, (".json",))
        must_differ(given.input, out)
        kinds, file = (".jsonl",), out.with_suffix(".jsonl")
    else:
        kinds, file = (".tsv", *kinds) if target.holds.columns else kinds, out
    free(file, given.overwrite, kinds)
    must_differ(given.input, file)
    return file


def _columns(target: Format, part: Part) -> tuple[str, ...]:
    """The columns of a table of text: the format's, and those of its own that the first rows have."""
    seen: set[str] = set()
    for place in range(min(LOOK, len(part.rows)) if target.holds.carried else 0):
        with suppress(BadRow):
            seen.update(part.values(place))
    return target.holds.columns + tuple(name for name in target.holds.carried if name in seen)


def _fit(
    example: Example, target: Format, drop: Sequence[str], left_out: LeftOut, dropped: Counter[str]
) -> Example | None:
    """What the target holds of an example; None for a row that does not fit and may be left out."""
    try:
        kept, less = fitted(example, target.holds, drop)
    except Unfit as error:
        if "rows" in drop:
            left_out.add("does not fit", str(example.origin), error.what)
            return None
        right = "--drop rows leaves such rows out"
        right = right if error.part == "rows" else f"--drop {error.part} writes the row without, {right}"
        raise BadInput(f"{example.origin}: {error.what}, which no row of {target.name} holds; {right}") from None
    dropped.update(less)
    return kept


def main() -> int:
    """`python -m mmjobs.tasks.convert`, which `mmlaunch convert` calls."""
    parser = argparse.ArgumentParser(prog="mmlaunch convert")
    add_source(parser)
    parser.add_argument("output")
    parser.add_argument("--to", required=True)
    parser.add_argument("--truths-as-answers", action="store_true")
    parser.add_argument("--drop", action="append", default=[], choices=(*PARTS, "rows"))
    parser.add_argument("--absolute", action="store_true")
    return end(parser, convert)


if __name__ == "__main__":
    sys.exit(main())
