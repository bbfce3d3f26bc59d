"""The one record that every format yields, whatever it was read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from PIL import Image


class Picture(Protocol):
    """An image that is opened when it is needed; two equal pictures have equal hashes and equal pixels."""

    def open(self) -> Image.Image: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Origin:
    """Where an example came from, so that every later error can name it."""

    source: str
    row: int

    def __str__(self) -> str:
        return f"{self.source}:{self.row}"


@dataclass(frozen=True)
class Turn:
    """One turn of the prompt."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Answer:
    """One answer to the prompt, with its score where the data have one."""

    text: str
    score: float | None = None


@dataclass(frozen=True)
class Example:
    """Images and turns before the answers, the answers, and where all of it stands."""

    images: tuple[Picture, ...]
    prompt: tuple[Turn, ...]
    answers: tuple[Answer, ...]
    origin: Origin
    label: str | None = None

    @property
    def question(self) -> tuple[tuple[Picture, ...], tuple[Turn, ...]]:
        """What makes two examples the same question: images and prompt."""
        return self.images, self.prompt
