"""`correctness`: several answers to each question, and pairs of those that are right and those that are wrong."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from mmjobs.data.sampler import seed_of
from mmjobs.inference.evaluate import Verified
from mmjobs.inference.inputs import InputRow
from mmjobs.inference.made import pair
from mmjobs.inference.records import Record
from mmjobs.inference.work import Check
from mmjobs.rank.context import Context
from mmlaunch.recipe.compared import Correctness


class CorrectnessPairs(Verified):
    """Pairs of answers, drawn by the seed and the index of the row."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        task = context.recipe.objective
        assert isinstance(task, Correctness)
        self._task, self._seed = task, context.recipe.seed

    def records(self, rows: Sequence[InputRow], check: Check) -> list[Record]:
        made = super().records(rows, check)
        return [self._with_pairs(row, one) for row, one in zip(rows, made, strict=True)]

    def _with_pairs(self, row: InputRow, made: Record) -> Record:
        if made.get("error"):
            return made
        right, wrong, unread, counts = self._sorted(made)
        example = self.question(row).example
        facts = {"source": row.own_source, "truth": next(iter(row.truths), None), "index": row.index}
        pairs = [
            pair(example, better, worse, **facts, why=why)
            for why, better, worse in drawn(right, wrong, unread, self._task.pairs_per_question, self._seed, row.index)
        ]
        counts.update({"pairs": len(pairs), "questions": 1})
        counts["questions without a right answer"] += not right
        counts["questions without a wrong answer"] += not wrong and not unread
        return {**made, "made": pairs, "counts": {name: count for name, count in counts.items() if count}}

    def _sorted(self, made: Record) -> tuple[list[str], list[str], list[str], Counter[str]]:
        """Each different answer among the right, the wrong or the unparsed ones; and how many were of what kind."""
        right, wrong, unread = dict[str, None](), dict[str, None](), dict[str, None]()
        counts = Counter[str]()
        for text, score, kind, finish in zip(
            made["predictions"], made["scores"], made["kinds"], made["finish"], strict=True
        ):
            counts["answers"] += 1
            if score is None or kind in ("timeout", "error"):
                counts[f"answers dropped: {kind}"] += 1
            elif not text.strip():
                counts["answers dropped: empty"] += 1
            elif score > self._task.right:
                counts["right answers"] += 1
                right[text] = None
            elif kind == "unparsed" and self._task.unparsed != "wrong":
                dropped = self._task.unparsed == "drop" or finish == "length"
                counts["answers dropped: unparsed" if dropped else "unparsed answers"] += 1
                unread |= {} if dropped else {text: None}
            else:
                counts["wrong answers"] += 1
                wrong[text] = None
        return list(right), list(wrong), list(unread), counts


def drawn(
    right: Sequence[str], wrong: Sequence[str], unread: Sequence[str], most: int, seed: int, index: int
) -> list[tuple[str, str, str]]:
    """At most so many pairs of a row, drawn by the seed: why it is one, the better and the worse answer. Those of a
    right and a wrong answer come first; what they leave is for answers from which nothing could be read."""
    pairs: list[tuple[str, str, str]] = []
    for why, rejected in (("correctness", wrong), ("format", unread)):
        every = [(why, better, worse) for better in right for worse in rejected]
        dice = random.Random(seed_of("pairs", seed, index, why))
        pairs += dice.sample(every, min(len(every), most - len(pairs)))
    return pairs
