"""The `shapes` format: coloured shapes that are drawn here, each with one question about its colour, shape or place.

The right answer comes first, then one that is wrong, then one to another question: their scores fall by one.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from mmjobs.data.example import IMAGE, Answer, Example, LazyExamples, Origin, Turn
from mmlaunch.recipe.data import Source

CANVAS = 64
COLOURS = {
    "red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220),
    "yellow": (235, 210, 50), "purple": (150, 60, 180), "orange": (240, 140, 30),
}  # fmt: skip
SHAPES = ("circle", "plus", "triangle")
PLACES = ("top left", "top right", "bottom left", "bottom right")
QUESTIONS = {"colour": "What colour is it?", "shape": "What shape is it?", "place": "Where is it?"}


@dataclass(frozen=True)
class Drawing:
    """One shape on a dark ground; its fields decide every pixel."""

    shape: str
    fill: tuple[int, int, int]
    ground: int
    centre: tuple[float, float]
    radius: float

    @property
    def identity(self) -> str:
        return repr(self)

    @property
    def file_name(self) -> str:
        """The same drawing has the same one."""
        return f"{hashlib.sha256(self.identity.encode()).hexdigest()[:16]}.png"

    def size(self, max_side: int | None = None) -> tuple[int, int]:
        return CANVAS, CANVAS

    def read(self) -> bytes:
        stream = io.BytesIO()
        self.open().save(stream, "PNG")
        return stream.getvalue()

    def open(self, max_side: int | None = None) -> Image.Image:
        image = Image.new("RGB", (CANVAS, CANVAS), (self.ground,) * 3)
        draw = ImageDraw.Draw(image)
        (x, y), r = self.centre, self.radius
        if self.shape == "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=self.fill)
        elif self.shape == "triangle":
            draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=self.fill)
        else:
            thin = 0.3 * r
            draw.rectangle((x - r, y - thin, x + r, y + thin), fill=self.fill)
            draw.rectangle((x - thin, y - r, x + thin, y + r), fill=self.fill)
        return image


def example(row: int) -> Example:
    """Row `row` of an endless data set; it is the same in every run, whatever the run's seed."""
    dice = random.Random(f"shapes/{row}")
    colour, shape, place = dice.choice(list(COLOURS)), dice.choice(SHAPES), dice.randrange(4)
    red, green, blue = (max(0, min(255, value + dice.randrange(-20, 21))) for value in COLOURS[colour])
    across, down = (20 if place % 2 == 0 else 44), (20 if place < 2 else 44)
    drawing = Drawing(
        shape=shape,
        fill=(red, green, blue),
        ground=dice.randrange(50),
        centre=(across + dice.uniform(-3, 3), down + dice.uniform(-3, 3)),
        radius=dice.uniform(12, 16),
    )
    kind = dice.choice(list(QUESTIONS))
    words = {"colour": list(COLOURS), "shape": list(SHAPES), "place": list(PLACES)}
    right = {"colour": colour, "shape": shape, "place": PLACES[place]}[kind]
    wrong = dice.choice([answer for answer in words[kind] if answer != right])
    beside = dice.choice(words[dice.choice([other for other in words if other != kind])])
    said = [right, wrong, beside]
    return Example(
        images=(drawing,),
        prompt=(Turn("user", (IMAGE, QUESTIONS[kind])),),
        answers=tuple(Answer(answer, float(2 - worse)) for worse, answer in enumerate(said)),
        origin=Origin("shapes", row),
        label=kind,
    )


@dataclass(frozen=True)
class Shapes(LazyExamples):
    """The rows from `first` on."""

    first: int
    rows: int

    def __len__(self) -> int:
        return self.rows

    def at(self, place: int) -> Example:
        return example(self.first + place)


def rows(source: Source) -> Sequence[Example]:
    """`limit` drawings after the first `skip` ones; ranges that do not overlap share no image."""
    if source.limit is None:
        raise ValueError("shapes never end, and the source has no limit")
    return Shapes(source.skip, source.limit)
