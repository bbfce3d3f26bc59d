"""The `shp` format: a post, two answers to it, and how many people liked each."""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial

from mmjobs.data.example import BadRow, Example, Surplus
from mmjobs.data.readers.answers import ranked, worded
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.rows import Rows, examples
from mmjobs.data.readers.turns import Message, prompt
from mmlaunch.recipe.data import Source

COLUMNS: tuple[tuple[str, ...], ...] = (("history", "human_ref_A", "human_ref_B"),)
"""Rows with all of one of these columns are in this format, unless a format of a lower `ORDER` matches."""
ORDER = 30

PAIRS = 5
"""Of each post, only the first five pairs of the chosen rows are used, in the order of the file: more would overfit."""


def rows(source: Source) -> Rows:
    """`history`, `human_ref_A` and `_B`, `score_A` and `_B`; `labels` (1 is A) decides where the scores are equal."""
    found = examples(source, "shp", ["history", "human_ref_A", "human_ref_B"], _example)
    seen: Counter[bytes] = Counter()
    surplus = set()
    for index in found.chosen:
        with suppress(BadRow):  # it is named when it is read
            row = found.table.row(index)
            if isinstance(post := row.get("history"), str):
                digest = hashlib.blake2b(post.encode(errors="surrogatepass"), digest_size=16).digest()
                seen[digest] += 1
                if seen[digest] > PAIRS:
                    surplus.add(row.origin.row)
    return replace(found, make=partial(_first, surplus))


def _first(surplus: set[int], row: Row) -> Example:
    if row.origin.row in surplus:
        raise Surplus(row.origin, f"its post has {PAIRS} pairs before it")
    return _example(row)


def _example(row: Row) -> Example:
    history = Message("user", row.text("history"), "history")
    names = ("human_ref_A", "human_ref_B")
    texts = [worded(row, row.need(name), name) for name in names]
    scores = [row.number(row.need(name), name) for name in ("score_A", "score_B")]
    if scores[0] == scores[1] and row.get("labels") not in (0, 1):
        raise row.bad(f"both answers have the score {scores[0]:g}, and labels does not decide (1 is A, 0 is B)")
    first = scores[0] > scores[1] or (scores[0] == scores[1] and row.get("labels") == 1)
    order = (0, 1) if first else (1, 0)
    answers = ranked(row, [texts[n] for n in order], [scores[n] for n in order], [names[n] for n in order])
    return Example((), prompt(row, [history], 0), answers, row.origin)
