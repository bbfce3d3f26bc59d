"""`score`: scores of the data's own answers, and what is chosen by them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from mmjobs.data.batch import collate
from mmjobs.data.encode import Processor
from mmjobs.data.example import Answer, BadRow, Example
from mmjobs.data.sampler import seed_of
from mmjobs.inference.inputs import Failed, InputRow, InputRows, check_numbers, of_row
from mmjobs.inference.made import Made, answered, pair
from mmjobs.inference.records import Record
from mmjobs.inference.verify import Verifiers
from mmjobs.inference.work import Check, failed, record
from mmjobs.model import trees
from mmjobs.rank.context import Context
from mmjobs.rank.watchdog import Phase
from mmjobs.rollout.reward_model import RewardModel
from mmjobs.train import pins
from mmjobs.train.reward_models import build_reward_network
from mmlaunch.errors import BadInput
from mmlaunch.recipe.compared import ALL
from mmlaunch.recipe.data import Source
from mmlaunch.recipe.inference import Score
from mmlaunch.recipe.requirements import Requirements

EMPTY: Mapping[str, Any] = {"scores": []}
ANSWERS = Requirements(least=1, prompts=False)


@dataclass(frozen=True)
class Judge:
    """A reward model with its own way to read answers."""

    weight: float
    model: RewardModel
    processor: Processor
    packed: bool
    blank: bool
    """Whether an image that nothing is read from stands for those that no row of a batch has: a model that is divided
    over the ranks is run by all of them alike."""

    def tokens(self, row: InputRow, example: Example) -> int:
        """All tokens of a row; raises `Failed` for a row that it cannot read as a whole."""
        try:
            tree = self.processor.tree(example, row.tiles)
        except BadRow as error:
            raise of_row(error) from None
        longest = len(tree.prompt) + max(map(len, tree.answers))
        if longest > self.processor.longest:
            what = f"{longest} tokens, more than data.max_tokens ({self.processor.longest})"
            raise Failed("overlong", f"{example.origin}: {what}")
        return len(tree.prompt) + sum(map(len, tree.answers))

    def scores(self, rows: Sequence[tuple[InputRow, Example]]) -> list[list[float] | Failed]:
        """The scores of all answers of each row, or why there are none."""
        scores: list[list[float] | Failed] = []
        encoded, places = [], []
        for place, (row, example) in enumerate(rows):
            try:
                encoded.append(self.processor.encode(example, row.tiles))
                places.append(place)
                scores.append([])
            except BadRow as error:
                scores.append(of_row(error))
        pixels, padding = self.processor.pixels, self.processor.chat.tokenizer.pad_token_id
        # Also without rows: a model that is divided over the ranks is run by all of them together.
        values = list(self.model(collate(encoded, pixels, padding, packed=self.packed, blank=self.blank)))
        for place in places:
            example = rows[place][1]
            count = len(example.answers)
            own, values = values[:count], values[count:]
            finite = all(map(math.isfinite, own))
            scores[place] = own if finite else Failed("nonfinite", f"{example.origin}: a score is not finite")
        return scores


class Scores:
    """Each answer's weighted sum of all sources of rewards."""

    def __init__(self, context: Context) -> None:
        task = context.recipe.objective
        assert isinstance(task, Score)
        self._task, self._seed = task, context.recipe.seed
        context.ranks.watch.enter(Phase.START)
        context.ranks.watch.doing("loads the reward models")
        pins.check(context)
        self._judges = [_judge(context, source.path, source) for source in task.rewards if source.path is not None]
        self._functions = [
            (source.weight, Verifiers(context, {ALL: source})) for source in task.rewards if source.function
        ]
        self._rows, self._readable = InputRows(context.recipe.data.inputs), dict[str, InputRow]()
        self._other = _other_answers(self._rows, task)

    def length(self, row: InputRow) -> int:
        example = self._example(row)
        if not example.answers:
            raise Failed("row", f"{example.origin}: has no answer to score")
        return max([sum(len(one.text) for one in example.answers), *(j.tokens(row, example) for j in self._judges)])

    def records(self, rows: Sequence[InputRow], check: Check) -> list[Record]:
        read = [(row, self._example(row)) for row in rows]
        totals: list[list[float | None] | Failed] = [[0.0] * len(example.answers) for _, example in read]
        kinds: list[list[str]] = [["scored"] * len(example.answers) for _, example in read]
        for judge in self._judges:
            for place, scores in enumerate(judge.scores(read)):
                totals[place] = _sum(totals[place], scores, judge.weight)
        alone = len(self._task.rewards) == 1
        for weight, verifiers in self._functions:
            for place, (row, example) in enumerate(read):
                texts = [answer.text for answer in example.answers]
                scored = verifiers.verify(row, example, example.truths, texts, ["eos"] * len(texts))
                totals[place] = _sum(totals[place], [one.value for one in scored], weight)
                if weight or alone:  # of a sum, no single verdict says what it is
                    kinds[place] = [
                        one.kind if alone or one.value is None else kind
                        for one, kind in zip(scored, kinds[place], strict=True)
                    ]
        return [
            self.failed(row, total) if isinstance(total, Failed) else self._record(row, example, total, kinds[place])
            for place, ((row, example), total) in enumerate(zip(read, totals, strict=True))
        ]

    def failed(self, row: InputRow, reason: Failed) -> Record:
        return failed(row, reason, {**EMPTY, "kind": self._kind(row)})

    def facts(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        for _, verifiers in self._functions:
            verifiers.close()

    def _example(self, row: InputRow) -> Example:
        """The row's example; with a second file of predictions, the first answer of each of the two."""
        assert row.example is not None
        if self._other is None:
            return row.example
        other: InputRow = self._other[row.index]
        if other.example is None or not other.example.answers or not row.example.answers:
            raise Failed("row", f"{row.example.origin}: one of the two files has no answer")
        if _asked(other.example) != _asked(row.example):
            raise Failed(
                "row", f"{row.example.origin}: {other.example.origin} answers another prompt, or has other images"
            )
        first, second = row.example.answers[0].text, other.example.answers[0].text
        return replace(row.example, answers=(Answer(first), Answer(second)))

    def _record(self, row: InputRow, example: Example, scores: Sequence[float | None], kinds: Sequence[str]) -> Record:
        texts = [one.text for one in example.answers]
        every = texts if self._other is not None else _every_answer(row, texts)
        places = [texts.index(text) for text in every]
        own = {"scored": every, "scores": [scores[one] for one in places], "kinds": [kinds[one] for one in places]}
        made = self._chosen(row, example, scores)
        more = {"made": made} if self._task.select != "none" else {}
        return record(row, {**own, "kind": self._kind(row), "error": None, **more})

    def _kind(self, row: InputRow) -> str:
        """What a row is counted as; one that cannot be read, as the first row of its source that can."""
        if self._other is not None:
            return "versus"
        if row.example is None:
            source = row.own_source
            if source not in self._readable:
                same = (one for one in self._rows if one.example is not None and one.own_source == source)
                self._readable[source] = next(same, row)
            row = self._readable[source]
        ranked = row.example is not None and len(row.example.answers) > 1 and "predictions" not in row.values
        return "pair" if ranked else "prediction"

    def _chosen(self, row: InputRow, example: Example, scores: Sequence[float | None]) -> list[Made]:
        """What the recipe selects: pairs with both scores, the best answer, or all that are good enough."""
        task, least = self._task, self._task.least
        known = [(score, one.text) for score, one in zip(scores, example.answers, strict=True) if score is not None]
        good = [(score, text) for score, text in known if least is None or score >= least]
        facts = {"source": row.own_source, "index": row.index}
        if task.select == "best" and good:
            score, text = max(good, key=lambda one: one[0])  # the first of equal ones
            return [answered(example, text, score=score, **facts)]
        if task.select == "all":
            return [answered(example, text, score=score, **facts) for score, text in dict.fromkeys(good)]
        if task.select != "pairs":
            return []
        every = [
            (b, w) for b in dict.fromkeys(good) for w in dict.fromkeys(known) if b[0] - w[0] > task.gap and b[1] != w[1]
        ]
        most = len(every) if task.pairs_per_row is None else min(task.pairs_per_row, len(every))
        drawn = random.Random(seed_of("pairs", self._seed, row.index, "score")).sample(every, most)
        return [
            pair(example, b[1], w[1], score_chosen=b[0], score_rejected=w[0], **facts)
            for b, w in sorted(drawn, key=every.index)
        ]


def _judge(context: Context, path: str, source: Any) -> Judge:
    built = build_reward_network(context, source)
    longest = built.model.longest(context.recipe.data.max_tokens)
    processor = Processor(built.model.chat, built.model.pixels, longest, requirements=ANSWERS)
    packed = trees.kind(built.model.network) == trees.NAME
    divided = context.deepspeed["zero_optimization"]["stage"] == 3
    blank = divided and built.model.chat.image_token is not None
    return Judge(source.weight, built.frozen(context), processor, packed, blank)


def _other_answers(first: InputRows, task: Score) -> InputRows | None:
    """The second file of predictions, which has a row for each of the first."""
    if task.against is None:
        return None
    source = Source(path=task.against, format="predictions")
    check_numbers(source)
    other = InputRows([source])
    if len(first) != len(other):
        what = f"{task.against} has {len(other)} rows, and the input has {len(first)}"
        raise BadInput(f"objective.against: {what}; both have to answer the same prompts")
    return other


def _every_answer(row: InputRow, texts: list[str]) -> list[str]:
    """The answers of a model as they were drawn: one that it gave three times counts three times."""
    said = row.values.get("predictions")
    return said if isinstance(said, list) and set(said) == set(texts) else texts


def _asked(example: Example) -> tuple[object, ...]:
    """What two models have to be asked alike: the words, and images of the same names, wherever their folders are."""
    return example.prompt, *(PurePath(image.identity).name for image in example.images)


def _sum(
    total: list[float | None] | Failed, scores: Sequence[float | None] | Failed, weight: float
) -> list[float | None] | Failed:
    if isinstance(total, Failed) or weight == 0:  # 0 only measures: what it lacks costs nothing
        return total
    if isinstance(scores, Failed):
        return scores
    return [
        None if one is None or other is None else one + weight * other for one, other in zip(total, scores, strict=True)
    ]
