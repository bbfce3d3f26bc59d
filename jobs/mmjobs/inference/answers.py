"""Answers: the recipe's model answers the prompts of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from mmjobs.data.chat import Tokens
from mmjobs.data.encode import Encoded, Processor
from mmjobs.data.example import BadRow, Example, Turn
from mmjobs.engine.frozen import frozen_model
from mmjobs.inference.inputs import Failed, InputRow, of_row
from mmjobs.inference.work import Check
from mmjobs.model import parts
from mmjobs.model.build import BuiltModel
from mmjobs.model.generate import Generated, Vocabulary, answer_text, generate, not_finite
from mmjobs.model.sampling import Draws
from mmjobs.rank.context import Context
from mmjobs.rank.watchdog import Phase
from mmjobs.train import pins
from mmjobs.train.setup import build_network
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.requirements import Requirements
from mmlaunch.recipe.sampling import Sampling

Answered = list[Generated] | Failed
_BEFORE = 8
"""So many tokens before an answer are decoded with it: some tokenizers write a space only between two words."""
NO_PROMPTS = Requirements(least=0, most=0, prompts=False)


@dataclass(frozen=True)
class Question:
    """What the model is asked: an example of its own answers, and how the answer begins, where that is given."""

    example: Example
    begun: str = ""


class Answers:
    """The model of a recipe, frozen, with its way to read prompts."""

    def __init__(self, context: Context, sampling: Sampling) -> None:
        self._context, self._sampling, self._ranks = context, sampling, context.ranks
        recipe, settings = frozen_recipe(context.recipe), context.deepspeed
        context.ranks.watch.enter(Phase.START)
        context.ranks.watch.doing("loads the model")
        pins.check(context)
        self.built: BuiltModel = build_network(recipe, settings)
        self._network: Any = self.built.network.requires_grad_(False).eval()
        self._lockstep = settings["zero_optimization"]["stage"] == 3 and context.ranks.world > 1
        if self._lockstep:
            self._engine = frozen_model(self._network, recipe.precision, settings)
        else:
            self._network.to(parts.TYPES[recipe.precision])
            self._network.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        longest = self.built.longest(recipe.data.max_tokens)
        self.processor = Processor(self.built.chat, self.built.pixels, longest, requirements=NO_PROMPTS)
        self._vocabulary = Vocabulary(self._network, self.built.chat, sampling)
        self._readers = ThreadPoolExecutor(max(1, recipe.data.workers))  # images are decoded side by side
        tokenizer = self.built.chat.tokenizer
        self._ends = {self.built.chat.end_id, tokenizer.eos_token_id}

    def length(self, question: Question, row: InputRow) -> int:
        """The tokens of a question with its images; raises `Failed` where it cannot be asked."""
        try:
            tokens = len(self._ids(question, row))
        except BadRow as error:
            raise of_row(error) from None
        space = self.built.positions - self._sampling.max_new_tokens
        if tokens > min(self.processor.longest, space):
            what = f"the prompt has {tokens} tokens"
            if tokens > self.processor.longest:
                limit = f"more than data.max_tokens ({self.processor.longest})"
            else:
                limit = (
                    f"and with {self._sampling.max_new_tokens} new ones more than the model's {self.built.positions}"
                )
            raise Failed("overlong", f"{question.example.origin}: {what}, {limit}")
        return tokens

    def answer(
        self, questions: Sequence[Question | None], rows: Sequence[InputRow], check: Check, turn: int = 0
    ) -> list[Answered]:
        """The answers to each question, or why there are none. All ranks together; None is not asked.

        `turn`: which turn of its conversation each question is; later ones are drawn with other numbers.
        """
        read: list[Encoded | Failed] = list(self._readers.map(self._encoded, questions, rows))
        usable = [place for place, one in enumerate(read) if isinstance(one, Encoded)]
        prompts = [one for one in read if isinstance(one, Encoded)]
        count, seed = self._sampling.answers, self._context.recipe.seed + turn
        draws = [Draws(seed, rows[place].index, number) for place in usable for number in range(count)]
        made = self._generate(prompts, draws, check)
        answers: list[Answered] = [one if isinstance(one, Failed) else [] for one in read]
        for number, place in enumerate(usable):
            answers[place] = own = made[number * count : (number + 1) * count]
            if broken := [one for one in own if not one.finite]:
                answers[place] = Failed("nonfinite", f"{prompts[number].origin}: {not_finite(broken[0])}")
        return answers

    def text(self, answer: Generated) -> str:
        return answer_text(self.built.chat, answer)

    def _continued(self, ids: Sequence[int], answer: Generated) -> str:
        """What an answer says that goes on with these tokens: the space before its first word is part of it."""
        decode = partial(self.built.chat.tokenizer.decode, skip_special_tokens=True)
        before, own = list(ids[-_BEFORE:]), answer.ids[:-1] if answer.ended else answer.ids
        return str(decode(before + own)).removeprefix(str(decode(before)))

    def finish(self, answer: Generated) -> str:
        """How an answer ended: eos, stop (a word of the recipe's), length."""
        if not answer.ended:
            return "length"
        return "eos" if answer.ids[-1] in self._ends else "stop"

    def described(self, question: Question, row: InputRow, answers: Sequence[Generated]) -> Mapping[str, Any]:
        """What a record says of generated answers."""
        ids = self._ids(question, row)
        text = partial(self._continued, ids) if question.begun else self.text
        image = 0 if self.built.chat.image_id is None else ids.count(self.built.chat.image_id)
        return {
            "predictions": [text(answer) for answer in answers],
            "finish": [self.finish(answer) for answer in answers],
            "tokens": {"prompt": len(ids), "image": image, "answers": [len(answer.ids) for answer in answers]},
            "log_probs": [round(sum(answer.log_probs), 4) for answer in answers],
        }

    def _generate(self, prompts: Sequence[Encoded], draws: Sequence[Draws], check: Check) -> list[Generated]:
        def tick(running: bool) -> bool:
            check()
            return self._ranks.any(running)

        pixels, chat = self.processor.pixels, self.built.chat
        return generate(
            self._network, prompts, draws, self._vocabulary, self._sampling, pixels,
            chat.tokenizer.pad_token_id, self._lockstep and chat.image_token is not None, tick, self._lockstep,
        )  # fmt: skip

    def _ids(self, question: Question, row: InputRow) -> list[int]:
        return self.processor.question(question.example, row.tiles, question.begun)

    def _encoded(self, question: Question | None, row: InputRow) -> Encoded | Failed:
        if question is None:
            return Failed("", "")
        try:
            encoded = self.processor.encode(question.example, row.tiles)
        except BadRow as error:
            return of_row(error)
        if not question.begun:
            return encoded
        ids = self._ids(question, row)
        return replace(encoded, prompt=Tokens(ids, [False] * len(ids)))


def frozen_recipe(recipe: Recipe) -> Recipe:
    """The same recipe, of whose model nothing is trained: adapters of a run are merged where it is read."""
    nothing = {"vision": "frozen", "projector": "frozen", "language": "frozen", "embeddings": False}
    train = recipe.model.train.model_copy(update={**nothing, "vision_layers": None})
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"train": train, "lora": None})})


def with_turn(example: Example, answer: str, question: str) -> Example:
    """The conversation goes on: the model's answer, and the user's next words."""
    return replace(
        example, prompt=(*example.prompt, Turn("assistant", (answer,)), Turn("user", (question,))), answers=()
    )
