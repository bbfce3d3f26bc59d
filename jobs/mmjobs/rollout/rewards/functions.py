"""The reward functions that come with mmlaunch: one function for each name of the schema.

Each gets an answer, its truth and its options, and says right (1) or wrong (0). An answer that is in no readable form
earns 0 as well, and is counted as unparsed. A truth that cannot be read is an error of the data, and scores nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from mmjobs.rollout.rewards import choices, expressions, parse, values
from mmjobs.rollout.rewards import vqa as vqa_rules
from mmjobs.rollout.rewards.distance import anls as similarity
from mmjobs.rollout.rewards.objects import Known
from mmjobs.rollout.rewards.score import Verdict

Truths = Sequence[str]
UNPARSED = Verdict(0.0, "unparsed")
_MATHEMATICS = re.compile(r"[\d=^\\±]")


def exact(answer: str, truth: str | None, *, truths: Truths, case: bool, punctuation: bool) -> Verdict:
    """The same text: " A  cat." is right where the truth is "a cat"."""
    return _judged(any(_equal(answer, one, case, punctuation) for one in _known(truths)))


def numeric(answer: str, truth: str | None, *, tolerance: float, relative: float) -> Verdict:
    """The last number: "so it is 1,250.0 m." is right where the truth is "1250"."""
    right, own = parse.last_number(_one(truth)), parse.last_number(answer)
    if right is None:
        raise ValueError(f"its truth {_short(truth)} has no number")
    return UNPARSED if own is None else _judged(parse.close(own, right, tolerance, relative), f"{own:.15g}")


def relaxed(answer: str, truth: str | None, *, truths: Truths, tolerance: float) -> Verdict:
    """ChartQA's relaxed accuracy: "10.4" is right where the truth is "10"; texts have to be the same."""
    known, own = _known(truths), parse.answer_of(answer)
    return _judged(any(_relaxed(own, one, tolerance) for one in known), own) if own else UNPARSED


def choice(answer: str, truth: str | None, *, prompt: str) -> Verdict:
    """The chosen letter: "The answer is (B), a cat" is right where the truth is "B"."""
    listed = choices.options(prompt)
    right, own = choices.of_truth(_one(truth), listed), choices.chosen(answer, listed)
    if right is None:
        raise ValueError(f"its truth {_short(truth)} names no letter from A to J")
    return UNPARSED if own is None else _judged(own == right, own)


def yes_no(answer: str, truth: str | None) -> Verdict:
    """Yes or no: "No, I see a notice only." is right where the truth is "no"."""
    right, own = parse.yes_or_no(_one(truth)), parse.yes_or_no(answer)
    if right is None:
        raise ValueError(f"its truth {_short(truth)} is neither yes nor no")
    return UNPARSED if own is None else _judged(own == right, own)


def vqa(answer: str, truth: str | None, *, truths: Truths) -> Verdict:
    """The VQA score: "two dogs." is right where the truth is "2 dogs"; of ten truths, four have to say so."""
    known, own = _known(truths), vqa_rules.normalised(parse.answer_of(answer))
    return _graded(vqa_rules.score(own, known), own) if own else UNPARSED


def anls(answer: str, truth: str | None, *, truths: Truths, threshold: float) -> Verdict:
    """The similarity of texts: "Main Street" is right where the truth is "main street", and each wrong letter costs."""
    known, own = _known(truths), parse.answer_of(answer)
    return _graded(max(similarity(own, one, threshold) for one in known), own) if own else UNPARSED


def boxed(answer: str, truth: str | None, *, tolerance: float, relative: float) -> Verdict:
    """The final answer: "hence \\boxed{\\frac{1}{2}}" is right where the truth is "0.5"."""
    own, right = parse.final_answer(answer), _marked(_one(truth))
    if own is None:
        return UNPARSED
    numbers = parse.number(own), parse.number(right)
    if numbers[0] is not None and numbers[1] is not None:
        return _judged(parse.close(numbers[0], numbers[1], tolerance, relative), own)
    return _judged(_equal_plain(own, right), own)


def final(
    answer: str, truth: str | None, *, truths: Truths, prompt: str, tolerance: float, relative: float, digits: int,
    marked: bool,
) -> Verdict:  # fmt: skip
    """The final answer in any form: "Final answer: 7.41 %" is right where the truth is "0.0741"."""
    known = [_marked(one) for one in _known(truths)]
    own = parse.final_answer(answer) if marked else parse.answer_of(answer)
    if not own:
        return UNPARSED
    listed = choices.options(prompt)
    close = partial(parse.close, tolerance=tolerance, relative=relative)
    return _judged(any(_agrees(own, one, listed, close, digits) for one in known), own)


def math(answer: str, truth: str | None, *, digits: int) -> Verdict:
    """The same expression: "it is $x(x+1)$" is right where the truth is "x^2+x"."""
    known, own = _marked(_one(truth)), parse.final_answer(answer)
    right = expressions.read_one(known)
    if not right:
        raise ValueError(f"its truth {_short(truth)} is no expression")
    said = parse.said_last(answer) if own is None else None
    if said and (values.quantities(said) or expressions.looks_like_one(said)):
        own = said
    read = expressions.read(answer) if own is None else expressions.read_one(own)
    if not read:
        return UNPARSED
    own = own or str(read[-1])
    if expressions.is_text(known) or expressions.is_text(own):
        return _judged(_equal_plain(own, known), own)
    by_value = values.same(own, known, partial(_rounded, digits=digits))
    return _judged(expressions.same(read, right, digits) if by_value is None else by_value, own)


def chair(answer: str, truth: str | None, *, truths: Truths, synonyms: Mapping[str, Sequence[str]]) -> Verdict:
    """CHAIR, lower is better: "a dog and a cat" scores 0.5 where the truths name a dog and no cat."""
    known, present = _objects(synonyms, truths)
    if not answer.strip():
        return Verdict(1.0, "unparsed")
    mentions = known.mentions(answer)
    absent = [name for name in mentions if name not in present]
    return Verdict(len(absent) / len(mentions) if mentions else 0.0, "scored", _listed(mentions, present))


def amber(
    answer: str, truth: str | None, *, truths: Truths, synonyms: Mapping[str, Sequence[str]], measure: str
) -> Verdict:
    """AMBER's description of images: the share of the objects in the image that "a dog and a cat" mentions."""
    known, present = _objects(synonyms, truths)
    mentions = list(dict.fromkeys(known.mentions(answer)))
    right = sum(name in present for name in mentions)
    if not answer.strip():
        return Verdict(0.0 if measure == "coverage" else 1.0, "unparsed")
    if measure == "coverage":
        score = right / len(present)
    else:
        score = (len(mentions) - right) / len(mentions) if mentions else 0.0
    return Verdict(score, "scored", _listed(mentions, present))


def format(answer: str, truth: str | None, *, pattern: str) -> Verdict:
    """The form of the whole answer: "<think>..</think> 3" is right for the pattern "<think>.*</think>.*"."""
    return _judged(re.fullmatch(pattern, answer.strip(), re.DOTALL) is not None)


def length(answer: str, truth: str | None, *, target: int | None, most: int | None) -> float:
    """The length in characters: 600 of them score 0.5 with the target 400, or where 400 are the most."""
    own, wanted = len(answer.strip()), target or most or 1
    beyond = abs(own - wanted) if target else max(own - wanted, 0)
    return max(0.0, 1.0 - beyond / wanted)


FUNCTIONS: dict[str, Callable[..., Verdict | float]] = {
    function.__name__: function
    for function in (
        exact, numeric, relaxed, choice, yes_no, vqa, anls, boxed, final, math, chair, amber, format, length,
    )
}  # fmt: skip
"""By the name that a recipe writes."""

LIBRARIES = {"math": ("math_verify", "pip install 'mmlaunch[math]'")}
"""What a function needs beside Python: the module, and how it is installed."""
WELCOME = {"final": "math_verify"}
"""What a function uses where it is installed."""


def _judged(right: bool, extracted: str | None = None) -> Verdict:
    return Verdict(1.0, "right", extracted) if right else Verdict(0.0, "wrong", extracted)


def _graded(score: float, extracted: str) -> Verdict:
    return Verdict(score, "scored", extracted) if 0 < score < 1 else _judged(score == 1, extracted)


def _agrees(own: str, truth: str, listed: choices.Options, close: values.Close, digits: int) -> bool:
    """Whether an answer is the truth: as a text, by value, as a choice, as an expression, in this order."""
    if _equal_plain(own, truth):
        return True
    by_value = values.same(own, truth, close)
    if by_value is not None:
        return by_value
    right = choices.of_truth(truth, listed)
    if right is not None:
        return choices.chosen(own, listed) == right
    if not expressions.INSTALLED or not (expressions.looks_like_one(own) and expressions.looks_like_one(truth)):
        return False
    read = expressions.read_one(own), expressions.read_one(truth)
    return all(read) and expressions.same(*read, digits)


def _relaxed(own: str, truth: str, tolerance: float) -> bool:
    number, wanted = values.quantity(own), values.quantity(truth)
    if number is None or wanted is None:
        return _equal(own, truth, case=False, punctuation=False)
    return values.equal(number, wanted, partial(parse.close, tolerance=0.0, relative=tolerance))


def _rounded(own: float, truth: float, digits: int) -> bool:
    """Whether two numbers are the same to so many digits behind the point; small ones to so many digits."""
    return abs(own - truth) <= 10.0**-digits * (1 if abs(truth) >= 10.0**-digits else abs(truth))


def _equal_plain(own: str, truth: str) -> bool:
    """Whether two short answers are the same text. Punctuation counts where it may be mathematics: 5! is not 5."""
    if not any(letter.isalnum() for letter in own):  # nothing but signs, which would be left out
        return own.strip() == truth.strip()
    own, truth = (parse.plain(text).strip(" .,;:*_`\"'") for text in (own, truth))
    return _equal(own, truth, case=False, punctuation=bool(_MATHEMATICS.search(own + truth)))


def _equal(answer: str, truth: str, case: bool, punctuation: bool) -> bool:
    punctuation = punctuation or not parse.normalised(truth, case, punctuation)  # a truth of nothing but punctuation
    return parse.normalised(answer, case, punctuation) == parse.normalised(truth, case, punctuation)


def _objects(synonyms: Mapping[str, Sequence[str]], truths: Truths) -> tuple[Known, set[str]]:
    """The known objects, those of the truths included, and those in the image."""
    named = [name.strip() for truth in _known(truths) for name in re.split(r"[,;\n]", truth) if name.strip()]
    known = Known(synonyms, named)
    return known, known.of(named)


def _listed(mentions: Sequence[str], present: set[str]) -> str:
    """`dog, cat (not there)`."""
    return ", ".join(name if name in present else f"{name} (not there)" for name in dict.fromkeys(mentions))


def _marked(truth: str) -> str:
    """A truth without what marks it as the final answer."""
    return parse.final_answer(truth) or truth


def _known(truths: Truths) -> list[str]:
    known = [truth for truth in truths if truth.strip()]
    if not known:
        raise ValueError("its row has no truth to compare with")
    return known


def _one(truth: str | None) -> str:
    return _known([truth or ""])[0]


def _short(truth: str | None) -> str:
    return repr(truth if len(truth or "") <= 60 else f"{(truth or '')[:57]}...")
