"""The processor: from an example to the tokens and pixels of one model."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from PIL import Image

from mmjobs.data.chat import Chat, Expand, TemplateMismatch, Tokens, Tree
from mmjobs.data.example import BadPicture, BadRow, Example, Origin, Slot
from mmjobs.data.expansion import Rewritten
from mmjobs.data.images.preprocess import ImageInputs, Pixels
from mmjobs.data.images.tiling import Size
from mmjobs.data.requirements import unpaired_label
from mmlaunch.errors import BadInput
from mmlaunch.recipe.requirements import Requirements

ImageChange = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Encoded:
    """One tree: a prompt with its images, and the answers that branch off from it."""

    prompt: Tokens
    answers: tuple[Tokens, ...]
    scores: tuple[float | None, ...]
    image_inputs: ImageInputs
    origin: Origin
    unpaired_label: int = 0
    """For a single answer: whether it is desirable (1) or not (-1)."""
    corrupted: ImageInputs | None = None
    """The corrupted images of a second tree, which holds the chosen answer alone."""
    mismatched: Tokens | None = None
    """An answer to another prompt, as if it had been given to this one."""
    token_values: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What a rollout knows of each token of its answers, by name."""
    reference: torch.Tensor | None = None
    """The reference's log-probability of each token in the loss, in the order of the answers of a batch."""

    @property
    def loss_tokens(self) -> tuple[int, ...]:
        """The number of tokens in the loss of each answer: the answers, the mismatched one, the corrupted one."""
        more = [self.mismatched] if self.mismatched is not None else []
        more += self.answers[:1] if self.corrupted is not None else []
        return tuple(sum(answer.loss_mask) for answer in (*self.answers, *more))

    @cached_property
    def key(self) -> bytes:
        """A digest of the tokens and the pixels."""
        digest = hashlib.blake2b(digest_size=16)
        for tokens in (self.prompt, *self.answers, *([self.mismatched] if self.mismatched else [])):
            digest.update(array("q", [len(tokens), *tokens.ids]).tobytes())
        for image_inputs in (self.image_inputs, self.corrupted or {}):
            for name in sorted(image_inputs):
                digest.update(f"{name}{tuple(image_inputs[name].shape)}{image_inputs[name].dtype}".encode())
                digest.update(image_inputs[name].contiguous().view(torch.uint8).numpy().tobytes())
        return digest.digest()


@dataclass(frozen=True)
class Processor:
    """How examples become tokens and pixels for one model."""

    chat: Chat
    pixels: Pixels
    longest: int
    """Tokens of a prompt and its longest answer."""
    overlong: Literal["drop", "cut"] = "drop"
    requirements: Requirements = field(default_factory=Requirements)
    """What the objective reads of an example."""

    def encode(
        self,
        example: Example,
        budget: int | None = None,
        augment: ImageChange | None = None,
        corrupt: ImageChange | None = None,
        mismatched: str | None = None,
    ) -> Encoded:
        """The tokens and pixels of an example that `fits`; `budget` bounds its tiles.

        `augment` changes its images, `corrupt` makes those of the second tree, `mismatched` is an answer to another
        prompt.
        """
        tree = self.tree(example, budget, mismatched)
        try:
            images = [picture.open(self.pixels.max_side) for picture in example.images]
        except BadPicture as error:
            raise BadRow(example.origin, str(error)) from error
        images = [augment(image) for image in images] if augment else images
        image_inputs = self.pixels.read(images, budget)
        corrupted = self.pixels.read([corrupt(image) for image in images], budget) if corrupt else None
        image_tokens, features = tree.prompt.ids.count(self._image), self.pixels.features_of(image_inputs)
        if features is not None and image_tokens != features:
            raise BadRow(example.origin, f"{image_tokens} image tokens stand for {features} image features")
        space = max(0, self.longest - len(tree.prompt))
        answers = [answer[:space] for answer in tree.answers]
        return Encoded(
            prompt=tree.prompt,
            answers=tuple(answers if mismatched is None else answers[:-1]),
            scores=tuple(answer.score for answer in example.answers[: self.requirements.most]),
            image_inputs=image_inputs,
            origin=example.origin,
            unpaired_label=unpaired_label(example),
            corrupted=corrupted,
            mismatched=None if mismatched is None else answers[-1],
        )

    def tree(self, example: Example, budget: int | None = None, mismatched: str | None = None) -> Tree:
        """The tokens of an example, with as many image tokens as each image has features; no image is decoded."""
        texts = [answer.text for answer in example.answers[: self.requirements.most]]
        texts += [] if mismatched is None else [mismatched]
        try:
            self._check_ends(example, texts)
            tree = self.chat.tree(example.prompt, texts, self._expand(example, budget))
        except (TemplateMismatch, Rewritten, BadPicture, BadInput) as error:
            raise error if isinstance(error, BadRow) else BadRow(example.origin, str(error)) from error
        if self.requirements.prompts:
            return tree
        return Tree(Tokens(tree.prompt.ids, [False] * len(tree.prompt)), tree.answers)

    def question(self, example: Example, budget: int | None = None, begun: str = "") -> list[int]:
        """The tokens that an answer is generated from; it begins with `begun`. Raises `BadRow`."""
        try:
            return self.chat.prompt(example.prompt, self._expand(example, budget), begun)
        except (TemplateMismatch, Rewritten, BadPicture, BadInput) as error:
            raise error if isinstance(error, BadRow) else BadRow(example.origin, str(error)) from error

    def prompt(self, example: Example, budget: int | None = None) -> Encoded:
        """What an answer is generated from: those tokens with the pixels."""
        return replace(self, requirements=Requirements(least=0, most=0, prompts=False)).encode(example, budget)

    def sizes(self, example: Example) -> tuple[Size, ...]:
        """The sizes of its images, as the model gets them."""
        try:
            return tuple(picture.size(self.pixels.max_side) for picture in example.images)
        except BadPicture as error:
            raise BadRow(example.origin, str(error)) from error

    def fits(self, tree: Tree) -> bool:
        """Whether an example can be trained on: a long answer may be cut where the recipe says so, a prompt never."""
        if not tree.answers:
            return len(tree.prompt) + self.requirements.room <= self.longest
        needed = 1 if self.overlong == "cut" else max(len(answer) for answer in tree.answers)
        return len(tree.prompt) + needed <= self.longest

    @property
    def _image(self) -> int:
        return -1 if self.chat.image_id is None else self.chat.image_id

    def _expand(self, example: Example, budget: int | None) -> Expand:
        """What turns the word of each image of an example into the words of its features."""
        count = len(example.images)
        if self.chat.image_token is None and count:
            what = "has an image, and this model takes none; write images: none, or another model"
            raise BadRow(example.origin, what)
        if count > 1 and not self.pixels.several:
            what = "has several images, and this model reads several images in another way than one by one"
            raise BadRow(example.origin, what)
        if count != (places := sum(isinstance(part, Slot) for turn in example.prompt for part in turn.content)):
            raise BadRow(example.origin, f"{count} images, and {places} places for them in the conversation")
        sizes = self.sizes(example)

        def expand(text: str) -> str:
            if (shown := text.count(str(self.chat.image_token))) != count:
                what = f"{count} images, and {shown} places for them in the rendered conversation"
                raise BadRow(example.origin, what)
            return self.pixels.expand(text, sizes, budget)

        return expand

    def _check_ends(self, example: Example, answers: Sequence[str]) -> None:
        """Refuse an answer that goes on behind its end: the served model stops there, or would learn to spell it."""
        earlier = [turn.text for turn in example.prompt if turn.in_loss]
        for text in (*answers, *earlier):
            if (word := self.chat.end_inside(text)) is not None:
                what = f"an answer has {word} in its midst, which ends the answers of this model"
                raise BadRow(example.origin, f"{what}; remove it, and what follows if that is another answer")
