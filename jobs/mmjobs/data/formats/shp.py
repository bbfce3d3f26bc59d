"""The `shp` format: a post, two answers to it, and how many people liked each."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from dataclasses import replace

from mmjobs.data.example import BadRow, Example
from mmjobs.data.formats.answers import ranked, worded
from mmjobs.data.formats.row import Row
from mmjobs.data.formats.rows import Rows, examples
from mmjobs.data.formats.turns import Message, prompt
from mmlaunch.recipe.data import Source

PAIRS = 5
"""Of each post, only the first five pairs of the chosen rows are used, in the order of the file: more would overfit."""


def rows(source: Source) -> Rows:
    """`history`, `human_ref_A` and `_B`, `score_A` and `_B`; `labels` (1 is A) decides where the scores are equal."""
    found = examples(source, "shp", ["history", "human_ref_A", "human_ref_B"], _example)
    seen: Counter[bytes] = Counter()
    kept = array("q")
    for index in found.chosen:
        post = _post(found, index)
        if post is not None:
            digest = hashlib.blake2b(post.encode(errors="surrogatepass"), digest_size=16).digest()
            seen[digest] += 1
            if seen[digest] > PAIRS:
                continue
        kept.append(index)
    return replace(found, chosen=kept)


def _post(found: Rows, index: int) -> str | None:
    """The post of a row; broken rows stay in, to be named when they are read."""
    try:
        post = found.table.row(index).get("history")
    except BadRow:
        return None
    return post if isinstance(post, str) else None


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
