"""Expansion: a rendered conversation in which each image has become the words of its features.

A tokenizer sees the expanded text, and the loss mask is known in the letters of the rendered one: a layout says which
letters of the one those of the other come from.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

Span = tuple[int, int]
NOWHERE: Span = (-1, -1)
"""What a token covers that only an image brought in."""


class Rewritten(Exception):
    """The processor changes words of the conversation, and nobody knows any more which of them are answers."""


@dataclass(frozen=True)
class Layout:
    """A text for the tokenizer, and where its letters come from."""

    text: str
    """The expanded text. A special token that is repeated stands there once, which tokenises in the same way."""
    repeats: dict[int, int]
    """How often the special token stands there that begins at this letter."""
    pieces: tuple[tuple[int, int, bool], ...]
    """(first letter here, first letter in the rendered text, whether an image brought it in)."""

    def origin(self, start: int, stop: int) -> Span:
        """The letters of the rendered text that these letters stand for; a token may lie on both sides of a seam."""
        first, last = self._piece(start), self._piece(max(start, stop - 1))
        if first == last and self.pieces[first][2]:
            return NOWHERE
        return self._place(first, start), self._place(last, stop)

    def _piece(self, letter: int) -> int:
        return bisect_right(self.pieces, letter, key=lambda piece: piece[0]) - 1

    def _place(self, piece: int, letter: int) -> int:
        here, there, brought = self.pieces[piece]
        return there if brought else there + letter - here


def layout(rendered: str, expanded: str, placeholder: str, repeated: re.Pattern[str]) -> Layout:
    """How the words around each `placeholder` of a rendered text stand in the expanded one."""
    if not placeholder:
        return Layout(rendered, {}, ((0, 0, False),))
    words = rendered.split(placeholder)
    text, repeats, pieces, there, done = "", {}, [], 0, 0
    for number, piece in enumerate(words):
        last = number == len(words) - 1
        at = (len(expanded) - len(piece) if last else expanded.find(piece, done)) if number else 0
        if at < done or not expanded.startswith(piece, at):
            raise Rewritten("its processor changes the words around an image")
        if number:  # what the image before this piece has become
            pieces.append((len(text), there - len(placeholder), True))
            short, counts = _once(expanded[done:at], repeated)
            repeats.update({len(text) + place: count for place, count in counts.items()})
            text += short
        pieces.append((len(text), there, False))
        text += piece
        there += len(piece) + len(placeholder)
        done = at + len(piece)
    return Layout(text, repeats, tuple(pieces))


def _once(text: str, repeated: re.Pattern[str]) -> tuple[str, dict[int, int]]:
    """The text with each repeated token written once, and how often it was written at these places."""
    short, counts, done = "", {}, 0
    for match in repeated.finditer(text):
        short += text[done : match.start()]
        counts[len(short)] = len(match[0]) // len(match[1])
        short += match[1]
        done = match.end()
    return short + text[done:], counts
