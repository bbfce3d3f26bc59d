"""The processor: from an example to its tokens and pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedTokenizerFast

from mmjobs.data.example import Example, Origin
from mmjobs.data.images import pixels
from mmjobs.model import tokens
from mmlaunch.errors import BadInput


@dataclass(frozen=True)
class Encoded:
    """One sequence: prompt, then the answer that is learnt."""

    prompt: list[int]
    answer: list[int]
    images: torch.Tensor  # [N, 3, S, S]
    origin: Origin


@dataclass(frozen=True)
class Processor:
    """How examples become tokens and pixels for one model, in its plain template: image, question, answer."""

    tokenizer: PreTrainedTokenizerFast
    image_side: int
    image_tokens: int
    """Tokens of one image."""
    longest: int
    overlong: Literal["drop", "cut"]

    def encode(self, example: Example) -> Encoded:
        """The tokens and pixels of an example that `fits`."""
        prompt, answer = self.prompt(example), self.answer(example)
        wanted = len(example.images) * self.image_tokens
        found = prompt.count(tokens.id_of(self.tokenizer, tokens.IMAGE))
        if found != wanted:
            raise BadInput(f"{example.origin}: {found} image tokens stand for {wanted} image features")
        images = [pixels(picture.open(), self.image_side) for picture in example.images]
        stacked = torch.stack(images) if images else torch.empty(0, 3, self.image_side, self.image_side)
        return Encoded(prompt, answer[: self.longest - len(prompt)], stacked, example.origin)

    def prompt(self, example: Example) -> list[int]:
        """Images come first, each as many tokens as the encoder gives features; then one line for each turn."""
        ids = [tokens.id_of(self.tokenizer, tokens.BEGIN)]
        for _ in example.images:
            ids += [tokens.id_of(self.tokenizer, tokens.IMAGE)] * self.image_tokens
        for turn in example.prompt:
            ids += tokens.encode(self.tokenizer, f"\n{turn.text}")
        return [*ids, *tokens.encode(self.tokenizer, "\n")]

    def answer(self, example: Example) -> list[int]:
        """The first answer and the end token, which is learnt like any other."""
        if not example.answers:
            raise BadInput(f"{example.origin}: has no answer to learn from")
        end = tokens.id_of(self.tokenizer, tokens.END)
        return [*tokens.encode(self.tokenizer, example.answers[0].text), end]

    def fits(self, example: Example) -> bool:
        """Whether an example can be learnt from: a long answer may be cut where the recipe says so, a prompt never."""
        prompt = len(self.prompt(example))
        return prompt + (1 if self.overlong == "cut" else len(self.answer(example))) <= self.longest
