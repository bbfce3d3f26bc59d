"""The shipped reward functions, in the forms that models write; and their names and options against the schema."""

from __future__ import annotations

import importlib.util
import inspect
import re
import time
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.rollout.rewards.judging import RIGHT, UNPARSED, WRONG, judge

from mmjobs.rollout.rewards import functions as shipped
from mmjobs.rollout.rewards.choices import chosen
from mmjobs.rollout.rewards.parse import last_number, number
from mmlaunch.recipe.reward_functions import CONTEXT, FUNCTIONS

needs_math = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed")


def test_names_and_options_are_those_of_the_schema() -> None:
    assert list(shipped.FUNCTIONS) == list(FUNCTIONS) and shipped.LIBRARIES.keys() <= FUNCTIONS.keys()
    for name, function in shipped.FUNCTIONS.items():
        answer, truth, *options = inspect.signature(function).parameters.values()
        assert (answer.name, truth.name) == ("answer", "truth"), name
        assert {one.name for one in options} - set(CONTEXT) == set(FUNCTIONS[name].model_fields), name
        assert all(one.kind is one.KEYWORD_ONLY and one.default is one.empty for one in options), name
        assert ": " in (function.__doc__ or ""), name


def test_the_right_answers_of_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[4] / "docs" / "rewards.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|\s*(?:`(.+?)`)?\s*\|", page, re.MULTILINE)
    assert [name for name, *_ in rows] == [name for name in FUNCTIONS if name not in ("chair", "amber", "length")]
    for name, answer, truth in rows:
        options = {"pattern": "<think>.*</think>.*"} if name == "format" else {}
        if name != "math" or importlib.util.find_spec("math_verify"):
            assert judge(name, answer.strip('"'), truth or None, **options) == RIGHT, name


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", 1234), ("it costs $1,234,567.50.", 1234567.5), ("1/2", 0.5), ("1 1/2", 1.5), ("step 1\n1/2", 0.5),
        ("-3/4", -0.75),
        ("50%", 0.5), ("50 %", 0.5), ("1e-3", 1e-3), ("1.5E+2", 150), (".5", 0.5), ("3.", 3), ("x = 5 - 3 = 2 m", 2),
        ("from 3-5", 5), ("(-3)", -3), ("\u22127", -7), (r"\frac{3}{4}", 0.75), (r"\dfrac12", 0.5),
        (r"3.0 \times 10^{-2}", 0.03), ("2\u00d710^3", 2000), ("12km", 12), ("1, 2", 2), (r"1{,}000", 1000),
        (r"\$5", 5), (r"75\%", 0.75), ("a 4 and CO2", 4), ("one", None), ("CO2", None), ("1/0", None), ("1e999", None),
        ("", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_the_last_number_of_a_text(text: str, value: float | None) -> None:
    assert last_number(text) == (None if value is None else pytest.approx(value, rel=1e-12))


def test_a_whole_text_is_a_number_or_is_not() -> None:
    for text in ("12", "12.", "12 km", "12 square metres", r"12\text{ cm}", "$12$", "12 km/h"):
        assert number(text) == 12, text
    for text in ("2x", "12 or 13", "x = 12", "(1, 2)", "1:30", "12 apples and 3"):
        assert number(text) is None, text


def test_parsing_takes_no_longer_for_long_texts() -> None:
    begin = time.monotonic()
    for part in ("1,", "1 ", "\\boxed{", "{", "-", "9", " /", " ", "\n", "(", "*", "A ", "A*", "final answer", "a."):
        text = part * 20_000
        for name, truth in (("numeric", "1"), ("choice", "A"), ("boxed", "1"), ("exact", "1")):
            judge(name, text, truth)
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(B)", "B"), ("B.", "B"),
        ("B) red", "B"), ("B: red", "B"), ("B", "B"), ("b", "B"), ("(b)", "B"), ("**B**", "B"),
        ("The answer is B", "B"),
        ("The correct answer is: **C**", "C"), ("Answer: J", "J"), ("answer is (A) a cat", "A"),
        (r"\boxed{D}", "D"), (r"\boxed{\text{(E)}}", "E"), ("Option A is wrong, the answer is (C).", "C"),
        ("I choose option D", "D"), ("Reasoning.\nSo, B.", "B"), ("(A) is red, (B) is blue. The answer is (A)", "A"),
        ("B. I think so", "B"), ("A cat is there", None), ("the answer: Because", None), ("Answer: K", None),
        ("I think it is a dog", None), ("", None),
    ],
)  # fmt: skip
def test_the_letter_of_an_answer(text: str, letter: str | None) -> None:
    assert chosen(text, {}) == letter


@pytest.mark.parametrize(
    ("function", "answer", "truth", "options", "wanted"),
    [
        ("exact", " A  cat. ", "a cat", {}, RIGHT),
        ("exact", "A cat", "a cat", {"case": True}, WRONG),
        ("exact", "a cat.", "a cat", {"punctuation": True}, WRONG),
        ("exact", "3.5", "35", {}, WRONG),
        ("exact", "-5", "5", {}, WRONG),
        ("exact", "e\u0301", "\u00e9", {}, RIGHT),
        ("exact", "...", "!", {}, WRONG),
        ("numeric", "so it is 1,250.0 m.", "1250", {}, RIGHT),
        ("numeric", "3.1", "3", {}, WRONG),
        ("numeric", "3.1", "3", {"tolerance": 0.11}, RIGHT),
        ("numeric", "103", "100", {"relative": 0.05}, RIGHT),
        ("numeric", "50%", "1/2", {}, RIGHT),
        ("numeric", "none", "1", {}, UNPARSED),
        ("choice", "The answer is (B), a cat", "B", {}, RIGHT),
        ("choice", "C.", "(B) a cat", {}, WRONG),
        ("choice", "a cat", "B", {}, UNPARSED),
        ("boxed", r"hence \boxed{\frac{1}{2}}", "0.5", {}, RIGHT),
        ("boxed", r"\boxed{1}, no: \boxed{\sqrt{2}}", r"\sqrt{2}", {}, RIGHT),
        ("boxed", "**Final Answer:** 12 cm.", "12", {}, RIGHT),
        ("boxed", r"\boxed{3} Final answer: 4", "3", {}, WRONG),
        ("boxed", r"\boxed{x + 1}", r"\boxed{x+1}", {}, WRONG),
        ("boxed", r"\boxed{\text{Paris}}", "paris", {}, RIGHT),
        ("boxed", "12", "12", {}, UNPARSED),
        ("boxed", r"\boxed{12", "12", {}, UNPARSED),
        ("format", "<think>a\nb</think> 3", None, {"pattern": "<think>.*</think>.*"}, RIGHT),
        ("format", "so <think>a</think> 3", None, {"pattern": "<think>.*</think>.*"}, WRONG),
    ],
)
def test_verdicts(
    function: str, answer: str, truth: str | None, options: dict[str, Any], wanted: tuple[float, str]
) -> None:
    assert judge(function, answer, truth, **options) == wanted


def test_length_is_soft() -> None:
    values = {size: judge("length", "x" * size, None, target=400) for size in (0, 200, 400, 600, 800, 2000)}
    assert {size: score for size, (score, _) in values.items()} == {
        0: 0.0,
        200: 0.5,
        400: 1.0,
        600: 0.5,
        800: 0.0,
        2000: 0.0,
    }
    assert [judge("length", "x" * size, None, most=400)[0] for size in (0, 400, 500, 900)] == [1.0, 1.0, 0.75, 0.0]


@pytest.mark.parametrize(
    "function",
    [
        "exact",
        "numeric",
        "relaxed",
        "choice",
        "yes_no",
        "vqa",
        "anls",
        "boxed",
        "final",
        pytest.param("math", marks=needs_math),
    ],
)
def test_a_truth_that_cannot_be_read_is_an_error_and_no_wrong_answer(function: str) -> None:
    """D23: a failure of the verifier must not look like a wrong answer."""
    for truth in (None, "  ") + ((" none at all ",) if function in ("numeric", "choice", "yes_no") else ()):
        with pytest.raises(ValueError, match="truth"):
            judge(function, r"\boxed{3}", truth)


@needs_math
@pytest.mark.parametrize(
    ("answer", "truth", "wanted"),
    [
        ("it is $x(x+1)$", "x^2+x", RIGHT),
        (r"\boxed{\frac{1}{2}}", "0.5", RIGHT),
        (r"$\{2, 1\}$", r"\{1, 2\}", RIGHT),
        ("the answer is 4", "3", WRONG),
        ("I do not know", "3", UNPARSED),
    ],
)
def test_math_verify(answer: str, truth: str, wanted: tuple[float, str]) -> None:
    assert judge("math", answer, truth) == wanted
