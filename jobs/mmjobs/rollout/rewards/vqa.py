"""The VQA score: the normalisation of the VQA evaluation, and its average over ten answers of people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

_DIGITS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(_DIGITS.split())}
_ARTICLES = ("a", "an", "the")

_NEGATED = "ai are ca could did does do had has have is might must need ought sha should was were wo would"
_WHO = "he she it they we you who there someone somebody something"
_ASKED = "what where why how"
_OTHERS = """
couldn't've hadn't've mightn't've shouldn't've wouldn't've let's that's when's i've could've might've must've not've
should've would've i'm i'd i'd've i'll ma'am o'clock 'twas y'all y'all'll y'all'd've
"""
_CONTRACTED = sorted(
    {f"{word}n't" for word in _NEGATED.split()}
    | {f"{word}'{end}" for word in _WHO.split() for end in ("d", "d've", "ll", "s", "ve", "re")}
    | {f"{word}'{end}" for word in _ASKED.split() for end in ("d", "ll", "s", "ve", "re")}
    | set(_OTHERS.split())
)
_OTHER_WORDS = frozenset(("its", "well", "were", "hell", "ill", "shell", "shed", "wed", "id", "lets", "whore"))
"""What contractions without their apostrophe would be, if they were not words of another meaning."""


def _without_some(word: str) -> list[str]:
    """A contraction in the ways in which it is written with an apostrophe or two left out."""
    places = [place for place, letter in enumerate(word) if letter == "'"]
    left = [word.replace("'", "")] + [word[:place] + word[place + 1 :] for place in places]
    return [one for one in left if one not in _OTHER_WORDS]


_CONTRACTIONS = {short: word for word in _CONTRACTED for short in _without_some(word)}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_POINT = re.compile(r"\.(?!\d)")
_COMMA = re.compile(r"\d,\d")


def normalised(text: str) -> str:
    """The text as it is compared: without articles and punctuation, numbers as digits, contractions as in books.

    A text of which nothing would be left stays as it is: an "a" may be the letter.
    """
    text = re.sub(r"[\n\t]", " ", text).strip().lower()
    whole, comma = text, _COMMA.search(text) is not None
    for sign in _PUNCTUATION:
        at_edge = f"{sign} " in whole or f" {sign}" in whole or comma
        text = text.replace(sign, "" if at_edge else " ")
    words = (_NUMBERS.get(word, word) for word in _POINT.sub("", text).split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES) or whole


def score(answer: str, truths: Sequence[str]) -> float:
    """The VQA score of an answer. `truths`: those of ten people, or fewer that are all right."""
    matches = [normalised(truth) == answer for truth in truths]
    if len(matches) < 10:
        return float(any(matches))
    total = sum(matches)
    return fmean(min(1.0, (total - match) / 3) for match in matches)
