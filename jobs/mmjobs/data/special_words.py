"""Special words: what users write that would be read as a special token stays words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mmjobs.data.example import Turn

_STAND_INS = 0x100000  # a private plane of Unicode
Words = dict[str, str]
"""The word that each letter stands for."""


def special_words(tokenizer: Any, image_token: str | None) -> re.Pattern[str]:
    """The words that a tokenizer reads as special tokens."""
    words = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    words |= {image_token} if image_token else set()
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)")


def hide(turns: Sequence[Turn], answers: Sequence[str], words: re.Pattern[str]) -> tuple[list[Turn], list[str], Words]:
    """Replace special words by one letter each, which no text contains."""
    letters: Words = {}
    text = "".join([*(turn.text for turn in turns), *answers])
    free = (chr(_STAND_INS + number) for number in range(0xFFFE) if chr(_STAND_INS + number) not in text)

    def letter(word: re.Match[str]) -> str:
        if word[0] not in letters:
            letters[word[0]] = next(free)
        return letters[word[0]]

    def hidden(text: str) -> str:
        return words.sub(letter, text)

    shown = [turn.changed(hidden) for turn in turns], [hidden(answer) for answer in answers]
    return *shown, {letter: word for word, letter in letters.items()}
