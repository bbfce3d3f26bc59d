"""The one record that every format yields, whatever it was read from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol, overload

from PIL import Image

from mmlaunch.errors import BadInput


class Picture(Protocol):
    """An image that is opened when it is needed."""

    def open(self, max_side: int | None = None) -> Image.Image:
        """Upright, in RGB, its pixels decoded, reduced to `max_side` where it is longer; raises `BadPicture`."""

    def size(self, max_side: int | None = None) -> tuple[int, int]:
        """(width, height) of what `open` gives, without decoding it; raises `BadPicture`."""

    def read(self) -> bytes:
        """The bytes of its file as they are; raises `BadPicture`."""

    @property
    def identity(self) -> str:
        """The same for the same picture, in every process."""

    @property
    def file_name(self) -> str:
        """What a file of it is called: the same picture has the same name; raises `BadPicture`."""


class BadPicture(Exception):
    """An image that cannot be used: which one, and why. The code that knows the row turns it into a `BadRow`."""


@dataclass(frozen=True)
class Origin:
    """Where an example came from, so that every later error can name it."""

    source: str
    row: int
    """The line of a file of lines, the index in everything else."""

    def __str__(self) -> str:
        return f"{self.source}:{self.row}"


class BadRow(BadInput):
    """A row that cannot be trained on; `on_bad: skip` leaves it out and lists it."""

    def __init__(self, origin: Origin, what: str) -> None:
        super().__init__(f"{origin}: {what}")
        self.origin, self.what = origin, what
        self.sample = str(origin)

    def __reduce__(self) -> tuple[type[BadRow], tuple[Origin, str]]:
        return type(self), (self.origin, self.what)  # it crosses from a worker process to its rank


class Surplus(BadRow):
    """A row that its format leaves out although it is right: there are enough of its kind."""


@dataclass(frozen=True)
class Slot:
    """The place of one image between the words of a turn."""


IMAGE: Final = Slot()

Content = tuple[str | Slot, ...]


@dataclass(frozen=True)
class Turn:
    """One turn of the prompt: words byte for byte as they were written, and the places of images between them."""

    role: Literal["system", "user", "assistant"]
    content: Content
    in_loss: bool = False
    """An assistant's turn of a conversation that is trained on as a whole."""

    @property
    def text(self) -> str:
        """The words alone."""
        return "".join(part for part in self.content if isinstance(part, str))

    def changed(self, change: Callable[[str], str], last: bool = False) -> Turn:
        """The same turn with other words; `last`: where its content ends with words, these alone."""
        parts = list(self.content)
        for place in range(len(parts) - 1 if last and parts else 0, len(parts)):
            if isinstance(part := parts[place], str):
                parts[place] = change(part)
        return replace(self, content=tuple(parts))


@dataclass(frozen=True)
class Answer:
    """One answer to the prompt, with its score where the data have one."""

    text: str
    score: float | None = None


@dataclass(frozen=True)
class Example:
    """Images and turns before the answers, the answers (best first), and where all of it stands.

    There are as many images as slots in the turns, in the same order.
    """

    images: tuple[Picture, ...]
    prompt: tuple[Turn, ...]
    answers: tuple[Answer, ...]
    origin: Origin
    label: str | None = None
    truths: tuple[str, ...] = ()
    """Every answer that the data call right, as a benchmark has them: the ten answers of VQA, a letter, a number."""
    followups: tuple[str, ...] = ()
    """What the user says next, whatever is answered before."""


class LazyExamples(Sequence[Example]):
    """A sequence whose examples are made when they are read."""

    @abstractmethod
    def at(self, place: int) -> Example:
        """The example at a place, counted from 0; raises `BadRow` where the row cannot be used."""

    def values(self, place: int) -> Mapping[str, Any]:
        """The row at a place as it was read, for whoever passes its fields on; raises `BadRow`."""
        return {}

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        places = range(len(self))[index]
        return self.at(places) if isinstance(places, int) else [self.at(place) for place in places]
