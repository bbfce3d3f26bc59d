"""`predict`: the model's answers to each prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmjobs.inference.answers import Answers, Question, with_turn
from mmjobs.inference.inputs import Failed, InputRow
from mmjobs.inference.records import Record
from mmjobs.inference.work import Check, failed, record
from mmjobs.rank.context import Context
from mmlaunch.recipe.inference import Generating

TURNS = "turn_predictions"
"""The field of a record with the answers to each turn of a conversation."""
EMPTY: Mapping[str, Any] = {"predictions": []}


class Predict:
    """Answers, and nothing else."""

    def __init__(self, context: Context) -> None:
        task = context.recipe.objective
        assert isinstance(task, Generating)
        self._ranks = context.ranks
        self.answers = Answers(context, task.sampling)

    def question(self, row: InputRow) -> Question:
        """What is asked of a row."""
        assert row.example is not None
        return Question(row.example)

    def length(self, row: InputRow) -> int:
        return self.answers.length(self.question(row), row)

    def records(self, rows: Sequence[InputRow], check: Check) -> list[Record]:
        questions = [self.question(row) for row in rows]
        answered = self.answers.answer(questions, rows, check)
        made = []
        for row, question, answers in zip(rows, questions, answered, strict=True):
            if isinstance(answers, Failed):
                made.append(self.failed(row, answers))
            else:
                made.append(record(row, {**self.answers.described(question, row, answers), "error": None}))
        return self._with_turns(rows, questions, made, check)

    def failed(self, row: InputRow, reason: Failed) -> Record:
        return failed(row, reason, EMPTY)

    def facts(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        return

    def _with_turns(
        self, rows: Sequence[InputRow], questions: Sequence[Question], made: list[Record], check: Check
    ) -> list[Record]:
        """Conversations go on with the user's further turns, each with the first answer to the turn before."""
        more = [row.example.followups if row.example else () for row in rows]
        following: list[Question | None] = list(questions)
        for turn in range(int(self._ranks.highest(max(map(len, more), default=0))[0])):
            for place, followups in enumerate(more):
                following[place] = self._next(following[place], made[place], followups, turn)
                made[place], following[place] = self._checked(rows[place], made[place], following[place], turn)
            answered = self.answers.answer(following, rows, check, turn + 1)
            for place, (question, answers) in enumerate(zip(following, answered, strict=True)):
                if question is None:
                    continue
                if isinstance(answers, Failed):
                    made[place] = _failed_at(made[place], answers, turn)
                    continue
                earlier = made[place].get(TURNS, [made[place]["predictions"]])
                texts = [self.answers.text(answer) for answer in answers]
                made[place] = {**made[place], TURNS: [*earlier, texts]}
        return made

    def _checked(
        self, row: InputRow, made: Record, question: Question | None, turn: int
    ) -> tuple[Record, Question | None]:
        """A record whose next question does not fit says so, and is asked no further."""
        try:
            if question is not None:
                self.answers.length(question, row)
            return made, question
        except Failed as reason:
            return _failed_at(made, reason, turn), None

    @staticmethod
    def _next(question: Question | None, before: Record, followups: Sequence[str], turn: int) -> Question | None:
        if question is None or before.get("error") or turn >= len(followups):
            return None
        said = before[TURNS][-1][0] if TURNS in before else before["predictions"][0]
        return Question(with_turn(question.example, said, followups[turn]))


def _failed_at(made: Record, reason: Failed, turn: int) -> Record:
    """A conversation that could not go on; the answers to its earlier turns stay."""
    return {**made, "error": {"reason": reason.reason, "detail": f"turn {turn + 2}: {reason.detail}"}}
