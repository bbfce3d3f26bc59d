"""Mathematical expressions: whether two are the same, by math-verify, where it is installed.

It is handed one expression at a time, and never a sentence: it would take a number out of it. What it says of numbers
is checked again, since it rounds them, and small ones to 0.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from typing import Any

from mmjobs.rollout.rewards.parse import in_ascii, plain

INSTALLED = importlib.util.find_spec("math_verify") is not None

_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_FUNCTIONS = """
sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp sqrt pi lim max min mod gcd lcm det
"""
_NAMES = frozenset(_FUNCTIONS.split())
_ENGLISH = "or and is to of in the not no if are an as at by on it be we so yes nor but for"
_SHORT_WORDS = frozenset(_ENGLISH.split())
_NO_EXPRESSION = re.compile(
    r"[?@#;\"~]|[+\-*/^=<>_]\s*$|\\(?:triangle|angle|overline|overrightarrow|widehat|odot|parallel|perp|cong|sim)\b"
)
"""What an expression has not: signs of a text, an operator at its end, and figures, whose letters have an order."""
_SIGN = re.compile(r"[\d+\-*/^=<>_(){}\[\]|!\\]")


def looks_like_one(text: str) -> bool:
    """Whether a text may be an expression: no words but names of functions, and a digit or a sign, or one letter."""
    bare = _COMMAND.sub(" ", plain(text))
    words = [word.lower() for word in _WORD.findall(bare) if word.lower() not in _NAMES]
    return not is_text(text) and not any(len(word) > 3 or word in _SHORT_WORDS for word in words)


def is_text(text: str) -> bool:
    """Whether a text can only be compared as one: "cat" is no product of c, a and t, and "5+" no 5."""
    letter = len(plain(text)) == 1 and plain(text).isalpha()
    return bool(_NO_EXPRESSION.search(text)) or not (letter or _SIGN.search(text))


def read(text: str) -> list[Any]:
    """The expressions that math-verify finds in a text; none if it finds none."""
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off
    # Its own time limits are signals, which do nothing in some processes and everything in others: ours kill.
    expressions: list[Any] = parse(in_ascii(text), parsing_timeout=None, raise_on_error=True)
    return expressions


def read_one(text: str) -> list[Any]:
    """As `read`, where the whole text is one expression."""
    return read(text if "$" in text or "\\boxed" in text else f"${text}$")


def same(own: list[Any], truth: list[Any], digits: int) -> bool:
    """Whether two expressions that were read are the same. The order matters: a chain may end in the truth."""
    from math_verify import verify

    equal = verify(truth, own, float_rounding=digits, timeout_seconds=None, raise_on_error=True)
    return bool(equal) and not _far_apart(own[0], truth[0], digits)


def _far_apart(own: Any, truth: Any, digits: int) -> bool:
    """Whether two numbers differ that are the same only when they are rounded: 1/2004! and 1/2006!."""
    if not all(getattr(one, "is_number", False) and getattr(one, "is_real", False) for one in (own, truth)):
        return False
    difference, size = abs((own - truth).evalf(digits + 5)), abs(truth.evalf(digits + 5))
    return bool(difference > size * 10.0**-digits and size < 10.0**-digits)
