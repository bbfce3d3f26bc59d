"""Objects that an answer mentions, by a table of synonyms: what the measures of hallucination count."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Synonyms = Mapping[str, Sequence[str]]
"""The other words for each known object: dog -> puppy, hound."""

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_IRREGULAR = {
    "men": "man", "women": "woman", "people": "person", "children": "child", "mice": "mouse", "geese": "goose",
    "feet": "foot", "teeth": "tooth", "knives": "knife", "leaves": "leaf", "shelves": "shelf", "loaves": "loaf",
}  # fmt: skip


class Known:
    """The known objects, to be looked for in answers."""

    def __init__(self, synonyms: Synonyms, others: Sequence[str]) -> None:
        """`others`: objects without synonyms, where the table does not have them."""
        self._named: dict[tuple[str, ...], str] = {}
        for name, words in (*synonyms.items(), *((name, ()) for name in others)):
            for text in (name, *words):
                self._named.setdefault(_words(text), name)
        self._longest = max((len(words) for words in self._named), default=0)

    def mentions(self, text: str) -> list[str]:
        """The objects that a text mentions, in its order and as often; of two that overlap, the longer name counts."""
        words, place, objects = _words(text), 0, []
        while place < len(words):
            for length in range(min(self._longest, len(words) - place), 0, -1):
                if name := self._named.get(words[place : place + length]):
                    objects.append(name)
                    place += length
                    break
            else:
                place += 1
        return objects

    def of(self, names: Sequence[str]) -> set[str]:
        """The objects that these words name."""
        return {self._named[_words(name)] for name in names}


def _words(text: str) -> tuple[str, ...]:
    return tuple(_singular(word.lower()) for word in _WORD.findall(text))


def _singular(word: str) -> str:
    """The same form for one and for many; it need not be a word."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    return word[:-2] if word.endswith(("sses", "shes", "ches", "xes", "zes")) else word[:-1]
