"""The processor: from an example to the tokens and pixels of one model."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from PIL import Image

from mmjobs.data.chat import Chat, TemplateMismatch, Tokens, Tree
from mmjobs.data.example import BadPicture, BadRow, Example, Origin
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
        image_inputs = self.pixels.read(images, _each(example, budget))
        corrupted = self.pixels.read([corrupt(image) for image in images], _each(example, budget)) if corrupt else None
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
        try:
            tree = self.chat.tree(example.prompt, texts if mismatched is None else [*texts, mismatched])
            prompt = self._with_images(tree.prompt, example, budget)
            if not self.requirements.prompts:
                prompt = Tokens(prompt.ids, [False] * len(prompt))
            return Tree(prompt, tree.answers)
        except (TemplateMismatch, BadPicture, BadInput) as error:
            raise error if isinstance(error, BadRow) else BadRow(example.origin, str(error)) from error

    def question(self, example: Example, budget: int | None = None) -> list[int]:
        """The tokens that an answer is generated from."""
        ids = self.chat.prompt(example.prompt)
        return self._with_images(Tokens(ids, [False] * len(ids)), example, budget).ids

    def sizes(self, example: Example) -> tuple[Size, ...]:
        """The sizes of its images, as the model gets them."""
        try:
            return tuple(picture.size(self.pixels.max_side) for picture in example.images)
        except BadPicture as error:
            raise BadRow(example.origin, str(error)) from error

    def fits(self, tree: Tree) -> bool:
        """Whether an example can be trained on: a long answer may be cut where the recipe says so, a prompt never."""
        needed = 1 if self.overlong == "cut" else max((len(answer) for answer in tree.answers), default=1)
        return len(tree.prompt) + needed <= self.longest

    @property
    def _image(self) -> int:
        return -1 if self.chat.image_id is None else self.chat.image_id

    def _with_images(self, prompt: Tokens, example: Example, budget: int | None) -> Tokens:
        if self.chat.image_id is None and example.images:
            raise BadRow(
                example.origin, "has an image, and this model takes none; write images: none, or another model"
            )
        if len(example.images) > 1 and not self.pixels.several:
            raise BadRow(
                example.origin, "has several images, and this model reads several images in another way than one by one"
            )
        places = [place for place, token in enumerate(prompt.ids) if token == self._image]
        if len(places) != len(example.images):
            what = f"{len(example.images)} images, and {len(places)} places for them in the rendered conversation"
            raise BadRow(example.origin, what)
        ids, mask, done, image = [], [], 0, 0
        sizes = self.sizes(example)
        for first, count in _runs(places):
            block = self.pixels.tokens(sizes[image : image + count], _each(example, budget))
            ids += [*prompt.ids[done:first], *block]
            mask += [*prompt.loss_mask[done:first], *([False] * len(block))]
            done, image = first + count, image + count
        return Tokens([*ids, *prompt.ids[done:]], [*mask, *prompt.loss_mask[done:]])


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """(first, count) of each group of neighbours: some models write adjacent images in another way."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and place == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((place, 1))
    return runs


def _each(example: Example, budget: int | None) -> int | None:
    """The tile budget of one image, where several share that of their example."""
    return max(1, budget // len(example.images)) if budget and example.images else None
