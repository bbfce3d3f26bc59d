"""The task `decontaminate`: the rows of a file without those that a test set has too."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any, get_args

from mmjobs.data.example import BadPicture, BadRow
from mmjobs.data.overlap import Images, Seen, TestSet
from mmjobs.data.writers.copies import copied, kinds, one_table
from mmjobs.data.writers.files import RowFile, free
from mmjobs.tasks.data_command import LeftOut, Progress, add_source, must_differ, opened
from mmjobs.tasks.program import end


def decontaminate(given: argparse.Namespace) -> dict[str, Any]:
    """Learn the test sets, then copy every row that shares nothing with them."""
    out, report = Path(given.output), Path(given.report or f"{Path(given.output).with_suffix('')}.removed.jsonl")
    kind, part = opened(given.input, given.format, given.images, given.split)
    rows, left_out = one_table(part), LeftOut(given.on_bad == "skip")
    free(out, given.overwrite, kinds(rows))
    free(report, given.overwrite, (".jsonl",))
    for path in (out, report):
        must_differ(given.input, path)
    tests = [_learnt(one, given, left_out) for one in given.against]
    removed: Counter[tuple[str, str]] = Counter()
    kept, moved = 0, Progress("decontaminate", len(rows))
    with RowFile(report) as listed, copied(rows, out) as copy:
        for place in range(len(rows)):
            moved()
            try:
                example = rows[place]
                seen = Seen.of(example, given.compare)
            except BadRow as error:
                left_out.bad(error)
                continue
            except BadPicture as error:
                left_out.bad(BadRow(example.origin, str(error)))
                continue
            found = next(((test, match) for test in tests if (match := test.match(seen))), None)
            if found is None:
                kept += 1
                copy(place)
                continue
            test, match = found
            removed[test.name, match.why] += 1
            listed.write({"row": str(example.origin), "against": test.name, "why": match.why, "shared": match.shown})
    by = [{"against": name, "why": why, "rows": count} for (name, why), count in removed.items()]
    read = [{"name": test.name, "rows": test.rows} for test in tests]
    result = {"format": kind.name, "rows": len(rows), "kept": kept, "removed": sum(removed.values()), "by": by}
    return {**result, "against": read, "output": str(out), "report": str(report), **left_out.facts()}


def _learnt(against: str, given: argparse.Namespace, left_out: LeftOut) -> TestSet:
    """The hashes of a test set: a path, perhaps with the folder of its images behind `=`."""
    path, images = against, None
    if not Path(against).expanduser().exists() and "=" in against:
        path, _, images = against.rpartition("=")
    _, part = opened(path, "auto", images)
    test, moved = TestSet(path, given.ngram, given.compare, given.distance), Progress(path, len(part.rows))
    for place in range(len(part.rows)):
        moved()
        try:
            example = part.rows[place]
            test.add(example)
        except BadRow as error:
            left_out.bad(error)
        except BadPicture as error:
            left_out.bad(BadRow(example.origin, str(error)))
    return test


def main() -> int:
    """`python -m mmjobs.tasks.decontaminate`, which `mmlaunch decontaminate` calls."""
    parser = argparse.ArgumentParser(prog="mmlaunch decontaminate")
    add_source(parser)
    parser.add_argument("output")
    parser.add_argument("--against", action="append", required=True)
    parser.add_argument("--ngram", type=int, default=13)
    parser.add_argument("--compare", choices=get_args(Images), default="exact")
    parser.add_argument("--distance", type=int, default=8)
    parser.add_argument("--report")
    return end(parser, decontaminate)


if __name__ == "__main__":
    sys.exit(main())
