"""`evaluate`: answers to each prompt, and whether they are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmjobs.data.example import Example, Turn
from mmjobs.inference.answers import Question
from mmjobs.inference.inputs import Failed, InputRow
from mmjobs.inference.predict import Predict
from mmjobs.inference.records import Record
from mmjobs.inference.verify import Verifiers, described
from mmjobs.inference.work import Check
from mmjobs.rank.context import Context
from mmlaunch.recipe.compared import QUESTION, Correctness, Evaluate


class Verified(Predict):
    """Questions with an instruction, whose answers are verified."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        task = context.recipe.objective
        assert isinstance(task, (Evaluate, Correctness))
        self._asks, self._remove = task.asks, task.remove
        self.verifiers = Verifiers(context, task.metric)

    def question(self, row: InputRow) -> Question:
        assert row.example is not None
        return Question(instructed(row.example, self._asks, self._remove))

    def records(self, rows: Sequence[InputRow], check: Check) -> list[Record]:
        made = super().records(rows, check)
        return [self._verified(row, one) for row, one in zip(rows, made, strict=True)]

    def failed(self, row: InputRow, reason: Failed) -> Record:
        return {**super().failed(row, reason), **self.verifiers.facts(row)}

    def close(self) -> None:
        self.verifiers.close()

    def _verified(self, row: InputRow, made: Record) -> Record:
        if made.get("error") or row.example is None:
            return made
        scores = self.verifiers.verify(row, row.example, row.truths, made["predictions"], made["finish"])
        return {**made, **self.verifiers.facts(row), **described(scores)}


def instructed(example: Example, asks: str, remove: Sequence[str] = ()) -> Example:
    """The same example, with an instruction around the words of its last question."""
    if asks == QUESTION and not remove:
        return example
    before, _, after = asks.partition(QUESTION)
    *earlier, last = example.prompt
    parts = list(last.content)
    places = [place for place, part in enumerate(parts) if isinstance(part, str)] or [len(parts)]
    parts += [""] if places == [len(parts)] else []
    parts[places[-1]] = _without(str(parts[places[-1]]), remove) + after
    parts[places[0]] = before + str(parts[places[0]])
    return replace(example, prompt=(*earlier, Turn(last.role, tuple(parts), last.in_loss)))


def _without(text: str, endings: Sequence[str]) -> str:
    """The text without these endings, as often as one of them is there."""
    text = text.rstrip()
    while ending := next((one for one in endings if one.strip() and text.endswith(one.strip())), None):
        text = text.removesuffix(ending.strip()).rstrip()
    return text
