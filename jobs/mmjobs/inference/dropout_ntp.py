"""`dropout_ntp`: the second half of a good answer, written by the model without the image, as a rejected answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from mmjobs.data.example import Example, Slot
from mmjobs.inference.answers import Question
from mmjobs.inference.inputs import Failed, InputRow
from mmjobs.inference.made import pair
from mmjobs.inference.predict import Predict
from mmjobs.inference.records import Record
from mmjobs.inference.work import Check
from mmjobs.rank.context import Context
from mmlaunch.recipe.inference import DropoutNtp

_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
"""Words: what stands between spaces, and each letter of scripts that have none between words."""


class DropoutNtpPairs(Predict):
    """Pairs that differ behind the cut alone."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        task = context.recipe.objective
        assert isinstance(task, DropoutNtp)
        self._ratio, self._blind = task.start_ratio, task.image == "remove"

    def question(self, row: InputRow) -> Question:
        assert row.example is not None
        example = replace(row.example, answers=())
        return Question(blind(example) if self._blind else example, begun(row.example.answers[0].text, self._ratio))

    def length(self, row: InputRow) -> int:
        if row.example is None or not row.example.answers:
            raise Failed("row", f"row {row.index} of {row.source} has no answer that could be begun")
        return super().length(row)

    def records(self, rows: Sequence[InputRow], check: Check) -> list[Record]:
        made = super().records(rows, check)
        return [self._with_pairs(row, one) for row, one in zip(rows, made, strict=True)]

    def _with_pairs(self, row: InputRow, made: Record) -> Record:
        if made.get("error") or row.example is None:
            return made
        chosen, prefix = row.example.answers[0].text, self.question(row).begun
        counts, pairs, seen = {"rows": 1}, [], set[str]()
        for continued, finish in zip(made["predictions"], made["finish"], strict=True):
            rejected = prefix + continued
            why = (
                "cut at its greatest length" if finish == "length" else "no continuation" if not continued.strip()
                else "the chosen answer again" if rejected.strip() == chosen.strip()
                else "the same twice" if rejected in seen else ""
            )  # fmt: skip
            seen.add(rejected)
            name = f"dropped: {why}" if why else "pairs"
            counts[name] = counts.get(name, 0) + 1
            if not why:
                facts = {"source": row.own_source, "why": "dropout_ntp", "begun": len(prefix), "index": row.index}
                pairs.append(pair(row.example, chosen, rejected, **facts))
        return {**made, "begun": prefix, "made": pairs, "counts": counts}


def begun(answer: str, ratio: float) -> str:
    """The first words of an answer, that share of them, without the space behind the last one."""
    words = list(_WORDS.finditer(answer))
    count = int(len(words) * ratio)
    return answer[: words[count - 1].end()] if count else ""


def blind(example: Example) -> Example:
    """The example without its images."""
    words = [tuple(part for part in one.content if not isinstance(part, Slot)) for one in example.prompt]
    turns = (replace(one, content=kept) for one, kept in zip(example.prompt, words, strict=True))
    return replace(example, images=(), prompt=tuple(turns))
