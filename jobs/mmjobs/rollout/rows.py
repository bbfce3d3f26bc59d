"""Rows: the answers of a rollout as batches, each prompt once with all its answers behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from mmjobs.data.batch import Batch, collate
from mmjobs.data.chat import Tokens
from mmjobs.data.encode import Encoded
from mmjobs.data.example import BadRow, Origin
from mmjobs.data.loader import Examples
from mmjobs.data.packing import pack
from mmjobs.model.vision_memory import VisionMemory
from mmjobs.rank.ranks import Ranks
from mmjobs.rollout.rollout import Rollout
from mmlaunch.recipe.batch import Batch as BatchSize


class Prompts:
    """The prompts of a run by their index, which goes on through the epochs; those of a rollout stay in memory."""

    def __init__(
        self,
        examples: Examples,
        seen: VisionMemory,
        skip: Callable[[Sequence[BadRow]], None] = lambda rows: None,
        most: int | None = None,
    ) -> None:
        """`seen`: the features of the images of a rollout, which are forgotten with it; `skip` is told of prompts that
        cannot be used; `most`: how many are kept at most, where they are more than a rollout has."""
        self.examples, self.seen, self._skip, self._most = examples, seen, skip, most
        self._kept: dict[int, Encoded | BadRow] = {}

    def __getitem__(self, index: int) -> Encoded:
        """Tokens and pixels; raises `BadRow` where an image turns out to be damaged."""
        if index not in self._kept:
            if len(self._kept) == self._most:
                self.forget()
            try:
                self._kept[index] = self.examples[index]
            except BadRow as error:
                if not self.examples.tolerant:
                    raise
                self._kept[index] = error
        prompt = self._kept[index]
        if isinstance(prompt, BadRow):
            raise prompt
        return prompt

    def usable(self, indices: Iterable[int]) -> list[int]:
        """Those without a damaged image."""
        usable = []
        for index in indices:
            try:
                self[index]
            except BadRow as error:
                if not self.examples.tolerant:
                    raise
                self._skip([error])
                continue
            usable.append(index)
        return usable

    def truth(self, index: int) -> str | None:
        """The data's own answer, if they have one."""
        answers = self.examples.mixture[self.examples.place_of(index)].answers
        return answers[0].text if answers else None

    def text(self, index: int) -> str:
        """The words of the prompt."""
        turns = self.examples.mixture[self.examples.place_of(index)].prompt
        return "\n".join(turn.text.strip() for turn in turns)

    def origin(self, index: int) -> str:
        return str(self.examples.mixture[self.examples.place_of(index)].origin)

    def origins(self, indices: Iterable[int]) -> list[Origin]:
        return [self[index].origin for index in indices]

    def forget(self) -> None:
        """The pixels and features of a rollout that is over."""
        self._kept.clear()
        self.seen.forget()


class Rows:
    """Deals the groups of a mini-batch to ranks and rows, and makes batches of them."""

    def __init__(self, prompts: Prompts, size: BatchSize, answers: int, ranks: Ranks) -> None:
        """`answers`: of each prompt."""
        self._prompts, self._size, self._answers, self._ranks = prompts, size, answers, ranks

    def of_prompts(self, prompts: Prompts, answers: int) -> Rows:
        """The same for other prompts, and another number of answers to each."""
        return Rows(prompts, self._size, answers, self._ranks)

    def of_rank(self, rollout: Rollout, groups: Sequence[int]) -> list[list[int]]:
        """The groups of each row of this rank. Every rank has as many rows; some may be empty."""
        if self._size.tokens_per_gpu is not None:
            lengths = [self._tokens(rollout, group) for group in groups]
            packed = pack(lengths, self._ranks.world, self._size.tokens_per_gpu)
            return [[groups[place] for place in row] for row in packed.ranks[self._ranks.rank]]
        share = -(-len(groups) // self._ranks.world)
        own = groups[self._ranks.rank * share : (self._ranks.rank + 1) * share]
        step = -(-self._size.examples // self._ranks.world)  # the answers of a rank in a step, all of them in one row
        micro = max(1, -(-(self._size.micro or step) // self._answers))
        rows = [list(own[begin : begin + micro]) for begin in range(0, len(own), micro)]
        return rows + [[]] * (-(-share // micro) - len(rows))

    def answers_of(self, groups: Iterable[int]) -> list[int]:
        """The answers of these groups, in the order of a batch."""
        return [group * self._answers + number for group in groups for number in range(self._answers)]

    def batch(self, rollout: Rollout, groups: Sequence[int], values: Sequence[str] = ()) -> Batch:
        """Groups in one row, or a row for each answer where attention cannot branch; with these values of tokens."""
        examples, processor = self._prompts.examples, self._prompts.examples.processor
        return collate(
            [self._encoded(rollout, group, values) for group in groups],
            processor.pixels,
            processor.chat.tokenizer.pad_token_id,
            packed=examples.packed,
            blank=examples.mixture.has_images,
        )

    def _encoded(self, rollout: Rollout, group: int, values: Sequence[str]) -> Encoded:
        answers = self.answers_of([group])
        tokens = [rollout.tokens(answer) for answer in answers]
        return replace(
            self._prompts[int(rollout.prompts[group])],
            answers=tuple(Tokens(ids, [True] * len(ids)) for ids in tokens),
            scores=(None,) * len(answers),
            token_values={name: rollout.values_of(name, answers) for name in values},
        )

    def _tokens(self, rollout: Rollout, group: int) -> int:
        index = self._prompts.examples.place_of(int(rollout.prompts[group]))
        prompt = self._prompts.examples.tokens(index)
        answers = int(rollout.lengths[self.answers_of([group])].sum())
        return prompt + answers if self._prompts.examples.packed else prompt * self._answers + answers
