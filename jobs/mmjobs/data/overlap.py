"""What a row shares with the rows of a test set: words in the same order, a whole short text, an image."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mmjobs.data.example import Example
from mmjobs.data.images.likeness import Near, content, fingerprint

Images = Literal["none", "exact", "perceptual"]

WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Kana and Chinese characters: each of them counts as a word."""
WORD = re.compile(rf"[{WITHOUT_SPACES}]|(?:(?![{WITHOUT_SPACES}])\w)+")


def words(text: str) -> list[str]:
    """The words of a text without case, punctuation and the width of its letters."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True)
class Match:
    """What a row shares with a test set."""

    why: Literal["words", "text", "image", "similar image"]
    shown: str
    """The shared words, or which image of the row."""


@dataclass
class Short:
    """The hashes of rows with a short question."""

    questions: set[int] = field(default_factory=set)
    answered: set[int] = field(default_factory=set)
    """Questions, each with an answer to it; without any, the question alone."""

    def add(self, question: Sequence[str], answers: Sequence[Sequence[str]]) -> None:
        self.questions.add(_hash(question))
        self.answered |= {_hash([*question, "\n", *answer]) for answer in answers} or {_hash(question)}

    def has(self, seen: Seen) -> bool:
        """A short question is common to many rows: only with its answer is it the same row, if both have one."""
        if not seen.answers:
            return _hash(seen.question) in self.questions
        texts = [seen.question, *([*seen.question, "\n", *answer] for answer in seen.answers)]
        return any(_hash(text) in self.answered for text in texts)


@dataclass
class TestSet:
    """The hashes of one test set; its texts and images are not kept."""

    __test__ = False  # pytest would take it for a test

    name: str
    ngram: int
    images: Images
    distance: int
    rows: int = 0
    grams: set[int] = field(default_factory=set)
    blind: Short = field(default_factory=Short)
    """Of rows without images."""
    pictured: Short = field(default_factory=Short)
    """Of rows with images."""
    pictures: set[bytes] = field(default_factory=set)
    near: Near = field(init=False)

    def __post_init__(self) -> None:
        self.near = Near(self.distance)

    def add(self, example: Example) -> None:
        """Learn one row of the test set; raises `BadPicture`."""
        question, answers = _texts(example)
        self.rows += 1
        for text in (question, *answers):
            self.grams.update(_hash(gram) for gram in self._grams(text))
        if len(question) < self.ngram:
            (self.pictured if example.images else self.blind).add(question, answers)
        for picture in example.images if self.images != "none" else ():
            self.pictures.add(content(picture))
            if self.images == "perceptual":
                self.near.add(fingerprint(picture))

    def match(self, seen: Seen) -> Match | None:
        """The first thing that a row shares with this test set."""
        for text in (seen.question, *seen.answers):
            if gram := next((gram for gram in self._grams(text) if _hash(gram) in self.grams), None):
                return Match("words", " ".join(gram))
        if len(seen.question) < self.ngram and self._same(seen):
            return Match("text", " ".join(seen.question))
        for number, picture in enumerate(seen.pictures, 1):
            if picture in self.pictures:
                return Match("image", f"image {number}")
        for number, print_ in enumerate(seen.fingerprints, 1):
            if (distance := self.near.nearest(print_)) is not None:
                return Match("similar image", f"image {number}, {distance} bits differ")
        return None

    def _same(self, seen: Seen) -> bool:
        """Two rows with images are the same by their images: "Is there a dog?" "yes" is asked of many."""
        return self.blind.has(seen) or (not seen.pictured and self.pictured.has(seen))

    def _grams(self, text: Sequence[str]) -> Iterator[Sequence[str]]:
        return (text[start : start + self.ngram] for start in range(len(text) - self.ngram + 1))


@dataclass(frozen=True)
class Seen:
    """A row as it is compared; made once for all test sets."""

    question: list[str]
    answers: list[list[str]]
    pictured: bool
    """Whether it has images, compared or not."""
    pictures: list[bytes]
    fingerprints: list[int]

    @classmethod
    def of(cls, example: Example, images: Images) -> Seen:
        """Raises `BadPicture`."""
        question, answers = _texts(example)
        pictures = [content(picture) for picture in example.images] if images != "none" else []
        prints = [fingerprint(picture) for picture in example.images] if images == "perceptual" else []
        return cls(question, answers, bool(example.images), pictures, prints)


def _texts(example: Example) -> tuple[list[str], list[list[str]]]:
    """The words of the question, all that the user says, and of each answer, right ones included."""
    question = " ".join([turn.text for turn in example.prompt if turn.role == "user"] + list(example.followups))
    earlier = [turn.text for turn in example.prompt if turn.role == "assistant"]
    answers = dict.fromkeys([*earlier, *(answer.text for answer in example.answers), *example.truths])
    return words(question), [words(text) for text in answers]


def _hash(text: Sequence[str]) -> int:
    """64 bits: among a billion n-grams against a hundred million, less than one in a hundred is a chance hit."""
    digest = hashlib.blake2b(" ".join(text).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
