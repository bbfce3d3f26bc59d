"""The reward functions that come with mmlaunch: one function for each name of the schema.

Each gets an answer, its truth and its options, and says right (1) or wrong (0). An answer that is in no readable form
earns 0 as well, and is counted as unparsed. A truth that cannot be read is an error of the data, and scores nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from mmjobs.rollout.rewards import parse
from mmjobs.rollout.rewards.score import Verdict

UNPARSED = Verdict(0.0, "unparsed")


def exact(answer: str, truth: str | None, *, case: bool, punctuation: bool) -> Verdict:
    """The same text: " A  cat." is right where the truth is "a cat"."""
    return _judged(_equal(answer, _known(truth), case, punctuation))


def numeric(answer: str, truth: str | None, *, tolerance: float, relative: float) -> Verdict:
    """The last number: "so it is 1,250.0 m." is right where the truth is "1250"."""
    right, own = parse.last_number(_known(truth)), parse.last_number(answer)
    if right is None:
        raise ValueError(f"its truth {_short(truth)} has no number")
    return UNPARSED if own is None else _judged(parse.close(own, right, tolerance, relative))


def choice(answer: str, truth: str | None) -> Verdict:
    """The chosen letter: "The answer is (B), a cat" is right where the truth is "B"."""
    right, own = parse.letter(_known(truth)), parse.letter(answer)
    if right is None:
        raise ValueError(f"its truth {_short(truth)} names no letter from A to J")
    return UNPARSED if own is None else _judged(own == right)


def boxed(answer: str, truth: str | None, *, tolerance: float, relative: float) -> Verdict:
    """The final answer: "hence \\boxed{\\frac{1}{2}}" is right where the truth is "0.5"."""
    own, right = parse.final_answer(answer), parse.final_answer(_known(truth)) or _known(truth)
    if own is None:
        return UNPARSED
    numbers = parse.number(own), parse.number(right)
    if numbers[0] is not None and numbers[1] is not None:
        return _judged(parse.close(numbers[0], numbers[1], tolerance, relative))
    return _judged(_equal(parse.plain(own), parse.plain(right), case=False, punctuation=False))


def math(answer: str, truth: str | None, *, digits: int) -> Verdict:
    """The same expression: "it is $x(x+1)$" is right where the truth is "x^2+x"."""
    from math_verify import parse as expressions
    from math_verify import verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off
    # Its own time limits are signals, which do nothing in some processes and everything in others: ours kill.
    unlimited: dict[str, Any] = {"parsing_timeout": None, "raise_on_error": True}
    known = _known(truth)
    right = expressions(known if "$" in known or "\\boxed" in known else f"${known}$", **unlimited)
    own = expressions(answer, **unlimited)
    if not right:
        raise ValueError(f"its truth {_short(truth)} is no expression")
    if not own:
        return UNPARSED
    return _judged(verify(right, own, float_rounding=digits, timeout_seconds=None, raise_on_error=True))


def format(answer: str, truth: str | None, *, pattern: str) -> Verdict:
    """The form of the whole answer: "<think>..</think> 3" is right for the pattern "<think>.*</think>.*"."""
    return _judged(re.fullmatch(pattern, answer.strip(), re.DOTALL) is not None)


def length(answer: str, truth: str | None, *, target: int | None, most: int | None) -> float:
    """The length in characters: 600 of them score 0.5 with the target 400, or where 400 are the most."""
    own, wanted = len(answer.strip()), target or most or 1
    beyond = abs(own - wanted) if target else max(own - wanted, 0)
    return max(0.0, 1.0 - beyond / wanted)


FUNCTIONS: dict[str, Callable[..., Verdict | float]] = {
    function.__name__: function for function in (exact, numeric, choice, boxed, math, format, length)
}
"""By the name that a recipe writes."""

LIBRARIES = {"math": ("math_verify", "pip install 'mmlaunch[math]'")}
"""What a function needs beside Python: the module, and how it is installed."""


def _judged(right: bool) -> Verdict:
    return Verdict(1.0, "right") if right else Verdict(0.0, "wrong")


def _equal(answer: str, truth: str, case: bool, punctuation: bool) -> bool:
    punctuation = punctuation or not parse.normalised(truth, case, punctuation)  # a truth of nothing but punctuation
    return parse.normalised(answer, case, punctuation) == parse.normalised(truth, case, punctuation)


def _known(truth: str | None) -> str:
    if truth is None or not truth.strip():
        raise ValueError("its row has no truth to compare with")
    return truth


def _short(truth: str | None) -> str:
    return repr(truth if len(truth or "") <= 60 else f"{(truth or '')[:57]}...")
