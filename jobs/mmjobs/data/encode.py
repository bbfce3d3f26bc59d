"""The processor: from an example to the tokens and pixels of one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from mmjobs.data.chat import CannotSay, Chat, Tokens, Tree
from mmjobs.data.example import BadPicture, BadRow, Example, Origin
from mmjobs.data.pixels import Pixels, Seen
from mmjobs.data.tiling import Size
from mmlaunch.errors import BadInput

Spoil = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Encoded:
    """One tree: a prompt with its images, and the answers that branch off from it."""

    prompt: Tokens
    answers: tuple[Tokens, ...]
    scores: tuple[float | None, ...]
    seen: Seen
    origin: Origin


@dataclass(frozen=True)
class Processor:
    """How examples become tokens and pixels for one model."""

    chat: Chat
    pixels: Pixels
    longest: int
    """Tokens of a prompt and its longest answer."""
    overlong: Literal["drop", "cut"] = "drop"
    read: int | None = None
    """How many answers the objective looks at, the best first; None: all."""

    def encode(self, example: Example, budget: int | None = None, spoil: Spoil | None = None) -> Encoded:
        """The tokens and pixels of an example that `fits`; `budget` bounds its tiles, `spoil` changes its images."""
        tree = self.tree(example, budget)
        try:
            images = [picture.open(self.pixels.max_side) for picture in example.images]
        except BadPicture as error:
            raise BadRow(example.origin, str(error)) from error
        seen = self.pixels.read([spoil(image) for image in images] if spoil else images, _each(example, budget))
        found, wanted = tree.prompt.ids.count(self._image), self.pixels.features_of(seen)
        if wanted is not None and found != wanted:
            raise BadRow(example.origin, f"{found} image tokens stand for {wanted} image features")
        room = max(0, self.longest - len(tree.prompt))
        return Encoded(
            prompt=tree.prompt,
            answers=tuple(answer[:room] for answer in tree.answers),
            scores=tuple(answer.score for answer in example.answers[: self.read]),
            seen=seen,
            origin=example.origin,
        )

    def tree(self, example: Example, budget: int | None = None) -> Tree:
        """The tokens of an example, every image as many as it has features; nothing is decoded for it."""
        try:
            tree = self.chat.tree(example.prompt, [answer.text for answer in example.answers[: self.read]])
            return Tree(self._with_images(tree.prompt, example, budget), tree.answers)
        except (CannotSay, BadPicture, BadInput) as error:
            raise error if isinstance(error, BadRow) else BadRow(example.origin, str(error)) from error

    def question(self, example: Example, budget: int | None = None) -> list[int]:
        """The tokens that an answer is generated from."""
        ids = self.chat.prompt(example.prompt)
        return self._with_images(Tokens(ids, [False] * len(ids)), example, budget).ids

    def sizes(self, example: Example) -> tuple[Size, ...]:
        """Of its images, as the model gets them."""
        try:
            return tuple(picture.size(self.pixels.max_side) for picture in example.images)
        except BadPicture as error:
            raise BadRow(example.origin, str(error)) from error

    def fits(self, tree: Tree) -> bool:
        """Whether an example can be learnt from: a long answer may be cut where the recipe says so, a prompt never."""
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
        places = [place for place, token in enumerate(prompt.ids) if token == self._image]
        if len(places) != len(example.images):
            what = f"{len(example.images)} images, and {len(places)} places for them in the rendered conversation"
            raise BadRow(example.origin, what)
        ids, learnt, done, seen = [], [], 0, 0
        sizes = self.sizes(example)
        for first, count in _runs(places):
            block = self.pixels.tokens(sizes[seen : seen + count], _each(example, budget))
            ids += [*prompt.ids[done:first], *block]
            learnt += [*prompt.learnt[done:first], *([False] * len(block))]
            done, seen = first + count, seen + count
        return Tokens([*ids, *prompt.ids[done:]], [*learnt, *prompt.learnt[done:]])


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """(first, count) of each row of neighbours: some models write images that stand together otherwise."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and place == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((place, 1))
    return runs


def _each(example: Example, budget: int | None) -> int | None:
    """The tiles of one image, where several share the budget of their example."""
    return max(1, budget // len(example.images)) if budget and example.images else None
