"""Verifiers on the answers that public ones got wrong: by value and never by substring, the last statement counts."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest
from tests.jobs.rollout.rewards.judging import RIGHT, UNPARSED, WRONG, judge, verdict

from mmjobs.rollout.rewards.score import Sample, Score
from mmjobs.rollout.rewards.workers import RewardWorkers
from mmlaunch.recipe.rewards import RewardSource
from mmlaunch.run.paths import RunPaths

HAS_MATH = importlib.util.find_spec("math_verify") is not None
needs_math = pytest.mark.skipif(not HAS_MATH, reason="math-verify is not installed")

SAME = [
    ("4", "4"), ("7.41 %", ".0741"), ("1,000", "1000"), ("-0", "0"), ("3 or 2", "2 or 3"), ("12 cm", "12"),
    ("1 m", "100 cm"), ("2 hours", "120 min"), ("1:00 pm", "13:00"), ("(0, 1.5)", "(0,1.5)"), ("-2021, 2021", "±2021"),
    (r"\pm 2021", "2021 or -2021"), ("n=3,2,1", "n=1,2,3"), ("x = 2", "2"), ("5 million", "5,000,000"),
    (r"\frac12", "50%"), ("about 12", "12"), ("3 apples", "3"), (r"\{1, 2\}", r"\{2, 1\}"), ("{1, 2, 3}", "1, 2 and 3"),
    ("1½", "1.5"), ("7 cm^2", "0.0007 square metres"), ("5 ms", "0.005 seconds"), ("90°", "90"),
]  # fmt: skip
"""Answers that are worth the same as their truth."""
DIFFERENT = [
    ("14", "4"), ("4", "14"), ("7.41", ".0741"), ("2 or 3", "2"), ("2", "2 or 3"), ("12 cm", "12 m"), ("12 kg", "12 m"),
    ("12:00", "1:00"), ("1:00 pm", "1:00 am"), ("(0,1)", "(0,1.5)"), ("[0,1]", "(0,1)"), ("(1,2)", "(2,1)"),
    (r"\pm 2021", "2021"), ("2021", "±2021"), ("n=2,3,4", "n=1,2,3"), ("x = 2", "y = 2"), ("1/2004!", "1/2006!"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"), ("1e-7", "2e-7"), ("5", "5!"), ("5", "5 million"), ("y=2x+1", "y=3x+1"),
    ("x+y=0", "x-y=0"), ("2021-03-04", "2021-4-3"), ("@@ ??", "##"), ("cat", "act"), ("3 and 4", "4"), ("-5", "5"),
    ("1000", "1,000,000"), ("1", "1½"), ("7 cm^2", "7 cm"), ("< 5", "5"), ("5+", "5"), ("1990s", "1990"),
    (r"10 \pm 2", "10"), (r"2\pi", "2"), ("3x", "3"), (r"\triangle ABC", r"\triangle ACB"), ("2, 3", "2"),
]  # fmt: skip
"""Answers that are not, though one contains the other, or a parser reads nothing or the same out of both."""


@pytest.mark.parametrize(("answer", "truth", "wanted"), [(*p, RIGHT) for p in SAME] + [(*p, WRONG) for p in DIFFERENT])
@pytest.mark.parametrize("function", ["final", pytest.param("math", marks=needs_math)])
def test_pairs_by_value(function: str, answer: str, truth: str, wanted: tuple[float, str]) -> None:
    for form in (r"\boxed{%s}", "so\nFinal answer: %s", "<answer>%s</answer>"):
        judged = verdict(function, form % answer, truth)
        assert (judged.score, judged.kind, judged.extracted) == (*wanted, answer), form
    if function == "math" and not any(sign in answer for sign in ("?", "cat", "tri")):
        assert judge(function, f"thus it is ${answer}$.", truth) == wanted, "the last formula"


@pytest.mark.parametrize(("answer", "truth"), [("14", "4"), ("4", "14"), ("2021", "±2021"), ("±2021", "2021")])
def test_pairs_through_the_verifiers_of_texts(answer: str, truth: str) -> None:
    for function in ("exact", "numeric", "relaxed", "vqa", "anls", "boxed", "final"):
        if "±" not in truth + answer or function not in ("numeric", "anls", "vqa"):
            judged = verdict(function, rf"\boxed{{{answer}}}" if function in ("boxed", "final") else answer, truth)
            assert judged.score is not None and judged.score < 1, function


@needs_math
def test_expressions_where_values_do_not_decide() -> None:
    for answer, truth in ((r"\sqrt{2}", "2^{1/2}"), ("x(x+1)", "x^2+x"), ("y=2x+1", "y=1+2x"), ("1/2006!", "1/2006!")):
        assert judge("final", f"Final answer: {answer}", truth) == RIGHT, answer
    assert judge("math", "it is 12 cm", "12 m") == WRONG
    assert judge("math", "it is cat", "act") == UNPARSED


@pytest.mark.parametrize(
    ("answer", "extracted"),
    [
        (r"\boxed{3}, no: \boxed{4}", "4"), (r"\boxed{3} Final answer: 4", "4"), (r"Final answer: \boxed{4}", "4"),
        ("<answer>3</answer> <answer>4</answer>", "4"), (r"<answer>\boxed{4}</answer>", "4"), ("<answer>4", "4"),
        ("<answer>Final answer: 4</answer>", "4"), ("**Final answer:**\n\n4.", "4"), ("Final Answer: **4**", "4"),
        ("The final answer is $4$. I hope it is correct.", "4"), ("Final answer: 3. Final answer: 4", "4"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"), ("Final answer: the answer is 4", "4"),
    ],
)  # fmt: skip
def test_the_last_mark_wins(answer: str, extracted: str) -> None:
    assert verdict("final", answer, "17").extracted == extracted


def test_two_that_cannot_be_read_are_not_the_same() -> None:
    """False == False: an answer of signs only would be right where the truth is one too."""
    for answer, truth in ((",", "."), ("'", "*"), ("{}", "[]"), (r"\quad", r"\,"), ("?", "!"), ("-", "+")):
        assert judge("final", rf"\boxed{{{answer}}}", truth)[1] != "right", answer
        assert judge("boxed", rf"\boxed{{{answer}}}", truth)[1] != "right", answer


def test_an_answer_that_marks_nothing_is_unparsed() -> None:
    for answer in ("", "   ", "4", "so it is 4", r"\boxed{}", r"\boxed{4} \boxed{}", "Final answer:", r"\boxed{4"):
        assert judge("final", answer, "4") == UNPARSED, answer
    assert judge("final", "4", "4", marked=False) == RIGHT
    assert judge("final", "14", "4", marked=False) == WRONG
    assert judge("final", "", "4", marked=False) == UNPARSED


OPTIONS = "Which is it?\nA. cat\nB. dog\nC. a red bird\nD. both A and B"


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Answer: **D**", "D"), ("a red bird", "C"), ("The answer is a red bird.", "C"), ("The answer is the dog", "B"),
        ("Answer: dog", "B"), ("A dog", "B"), ("B dog", "B"), ("**B. dog**", "B"), ("<answer>dog</answer>", "B"),
        (r"\boxed{dog}", "B"), ("both A and B", "D"), ("It is not (A). It is (B).", "B"), ("(a)", "A"), ("b.", "B"),
        ("The answer is A. No, wait: the answer is B", "B"), ("Option A is wrong. Option B is right", "B"),
        ("A. cat\nB. dog\nSo the answer is B.", "B"), ("I looked at it.\n\ndog", "B"), ("I pick B", "B"),
        ("The answer is A, since it purrs", "A"), ("The best option is: **(B) dog**", "B"), ("答案是B", "B"),
        ("The answer is:\n\nB", "B"), ("The answer is A because it purrs", "A"),
        ("The answer to the question is B", "B"), ("Thus B is the correct one, and (A) is not.", "B"),
        ("The answer is A+", None), ("B is not right", None),
        ("The answer: A dog is there", None), ("The answer is not A", None), ("A or B", None), ("(A) or (B)", None),
        ("The answer is A or B", None), ("The answer is A, B", None), ("It has vitamin C", None),
        ("This is hepatitis B", None), ("Because it flies, cat", None), ("The options are A, B, C", None),
        ("A. cat\nB. dog\nC. a red bird\nD. both A and B", None), ("Definitely", None), ("", None),
    ],
)  # fmt: skip
def test_the_choice_of_an_answer(answer: str, letter: str | None) -> None:
    for truth in "ABCD":
        wanted = UNPARSED if letter is None else RIGHT if letter == truth else WRONG
        judged = verdict("choice", answer, truth, prompt=OPTIONS)
        assert (judged.score, judged.kind, judged.extracted) == (*wanted, letter)


def test_a_truth_may_be_the_text_of_its_option() -> None:
    for truth in ("dog", "(B) dog", "B. dog", "b", r"\boxed{B}", "The answer is B"):
        assert judge("choice", "B", truth, prompt=OPTIONS) == RIGHT, truth
        assert judge("choice", "C", truth, prompt=OPTIONS) == WRONG, truth
    assert judge("choice", "B", "2", prompt="Say it. (A) 1 (B) 2 (C) 3") == RIGHT
    assert judge("choice", "2", "B", prompt="A. 9\nB. 8\nNow this one:\nA. 1\nB. 2") == RIGHT, "the last list counts"
    assert judge("choice", "2", "B", prompt="A. 2\nB. 2") == UNPARSED, "two options of the same text"
    for answer, truth in (("B", "dog"), ("dog", "B"), ("(B)", "B"), ("the dog", "B")):
        assert judge("final", f"Final answer: {answer}", truth, prompt=OPTIONS) == RIGHT, answer
    for answer, truth in (("A dog", "A"), ("C", "dog"), ("cat", "B"), ("not B", "B")):
        assert judge("final", f"Final answer: {answer}", truth, prompt=OPTIONS) == WRONG, answer


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("Yes, a dog", "yes"), ("no", "no"), ("No, I see a notice", "no"), ("**No**.", "no"),
        ("The answer is yes.", "yes"),
        ("Yes. Wait. Answer: No", "no"), ("I looked.\nYes", "yes"),
        ("The answer to this is no.", "no"), (r"\boxed{no}", "no"),
        ("<answer>Yes</answer>", "yes"),
        ("notice", None), ("Not sure", None), ("Nothing", None), ("yesterday", None), ("yes or no", None),
        ("Yes and no.", None), ("No doubt", None), ("no one", None), ("yes-man", None),
        ("There is no dog", None), ("", None),
    ],
)  # fmt: skip
def test_yes_and_no(answer: str, word: str | None) -> None:
    for truth in ("Yes", "no."):
        wanted = UNPARSED if word is None else RIGHT if truth.lower().startswith(word) else WRONG
        assert (judge("yes_no", answer, truth), verdict("yes_no", answer, truth).extracted) == (wanted, word)
    with pytest.raises(ValueError, match="'maybe' is neither yes nor no"):
        judge("yes_no", answer, "maybe")


def test_relaxed_accuracy() -> None:
    right = [("10.5", "10"), ("9.5", "10"), ("0", "0"), ("-0.0", "0"), ("7.41%", "0.0741"), ("$1,050", "1000"),
             ("5 km", "5"), ("Red", "red"), ("1/2", "0.5"), ("Final answer: 10", "10"), ("-10", "-10.1")]  # fmt: skip
    wrong = [("10.6", "10"), ("0.01", "0"), ("14", "4"), ("redd", "red"), ("12:00", "1:00"), ("2 or 3", "2"),
             ("-10", "10"), ("7.41%", "7.41"), ("it is 10", "10")]  # fmt: skip
    for pairs, wanted in ((right, RIGHT), (wrong, WRONG)):
        for answer, truth in pairs:
            assert judge("relaxed", answer, truth) == wanted, (answer, truth)
    assert judge("relaxed", "10.6", "10", tolerance="10%") == RIGHT
    assert judge("relaxed", " ", "10") == UNPARSED


def test_the_vqa_score_leaves_one_out() -> None:
    """The mean over ten sets of nine: min(1, the number that says the same / 3)."""
    for count, score in ((0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)):
        truths = ["two dogs"] * count + [f"other {n}" for n in range(10 - count)]
        kind = {0.0: "wrong", 1.0: "right"}.get(score, "scored")
        assert judge("vqa", "2 dogs.", *truths) == (pytest.approx(score), kind)
    same = [("dont", "don't"), ("1,000", "1000"), ("yes, sir", "yes sir"), ("none", "0"), ("The cat", "a cat"),
            ("top-left", "top left"), ("3.", "3"), ("(red)", "red"), ("shouldnt've", "shouldn't've")]  # fmt: skip
    for answer, truth in same:
        assert judge("vqa", answer, truth) == RIGHT, answer
    for answer, truth in (("4", "14"), ("3.5", "35"), ("it's", "its"), ("well", "we'll"), ("dogs", "dog")):
        assert judge("vqa", answer, truth) == WRONG, answer
    assert judge("vqa", "a cat", "dog", "cat") == RIGHT, "fewer than ten are alternatives"
    assert judge("vqa", "A", "a") == RIGHT and judge("vqa", "the", "a") == WRONG, "nothing would be left of them"
    assert judge("vqa", " ", "a") == UNPARSED


def test_anls_is_a_similarity_and_no_distance() -> None:
    """Defect 4.8.1: with the distance as the score, a wholly wrong answer was right and an exact one wrong."""
    assert judge("anls", "Main  Street", "main street") == RIGHT
    assert judge("anls", "zzzz", "main") == WRONG
    assert judge("anls", "main stret", "main street") == (pytest.approx(1 - 1 / 11), "scored")
    assert judge("anls", "abcd", "abxy") == (0.5, "scored")
    assert judge("anls", "abcd", "axyz") == WRONG
    assert judge("anls", "abcd", "abxy", threshold="60%") == WRONG
    assert judge("anls", "cat", "dog", "cats", "caps") == (0.75, "scored")
    assert judge("anls", "", "x") == UNPARSED
    assert judge("anls", "abcdefghij", "abcdefghiX", threshold=0.9) == (pytest.approx(0.9), "scored")


def test_one_of_several_truths_is_enough() -> None:
    for function, form in (("exact", "%s"), ("relaxed", "%s"), ("vqa", "%s"), ("anls", "%s"), ("final", r"\boxed{%s}")):
        assert judge(function, form % "a car", "lorry", "car" if function == "vqa" else "a car") == RIGHT, function
        assert judge(function, form % "boat", "lorry", "a car") == WRONG, function
        assert judge(function, form % "lorry", "", "lorry") == RIGHT, "an empty one is left out"
        with pytest.raises(ValueError, match="no truth"):
            judge(function, form % "lorry", "", " ")


SYNONYMS = {"dog": ["puppy", "hound"], "hot dog": [], "person": ["man", "woman"], "cat": ["kitten"], "knife": []}


@pytest.mark.parametrize(
    ("answer", "chair", "hallucination", "coverage", "extracted"),
    [
        ("A dog and a kitten", 1 / 2, 1 / 2, 1 / 2, "dog, cat (not there)"),
        ("Two men with puppies eat a hot dog.", 1 / 3, 1 / 3, 1.0, "person, dog, hot dog (not there)"),
        ("A cat, a cat and a hound; cats!", 3 / 4, 1 / 2, 1 / 2, "cat (not there), dog"),
        ("knives", 1.0, 1.0, 0.0, "knife (not there)"),
        ("dogma, catalogue", 0.0, 0.0, 0.0, ""),
        ("A woman", 0.0, 0.0, 1 / 2, "person"),
    ],
)
def test_objects_that_are_not_in_the_image(
    answer: str, chair: float, hallucination: float, coverage: float, extracted: str
) -> None:
    for truths in (("dog, person",), ("dogs", "a man"[2:])):
        judged = verdict("chair", answer, *truths, synonyms=SYNONYMS)
        assert judged.score == pytest.approx(chair)
        assert (judged.kind, judged.extracted) == ("scored", extracted)
        for measure, score in (("hallucination", hallucination), ("coverage", coverage)):
            assert judge("amber", answer, *truths, synonyms=SYNONYMS, measure=measure) == (
                pytest.approx(score),
                "scored",
            )


def test_hallucination_without_words_is_not_good() -> None:
    assert judge("chair", " ", "dog", synonyms=SYNONYMS) == (1.0, "unparsed")
    assert judge("amber", "", "dog", synonyms=SYNONYMS, measure="hallucination") == (1.0, "unparsed")
    assert judge("amber", "", "dog", synonyms=SYNONYMS, measure="coverage") == (0.0, "unparsed")
    assert judge("chair", "a zebra and a dog", "zebra", synonyms=SYNONYMS)[0] == 0.5, "truths are known objects too"


@needs_math
@pytest.mark.parametrize("function", ["final", "math"])
def test_expressions_that_never_end_hold_up_nobody(function: str, tmp_path: Path) -> None:
    source = RewardSource.model_validate({"function": function}).model_copy(update={"deadline": 1.0})
    nested = "\\sqrt{" * 40 + "2" + "}" * 40
    hanging = ["10**10**10", "9^{9^{9^{9}}}", f"{nested}+{nested[::-1]}"]
    answers = [rf"\boxed{{{one}}}" for one in (*hanging, "6/2", r"\sqrt{9}", "4")]
    begin = time.monotonic()
    with RewardWorkers(source, 2, RunPaths(tmp_path)) as workers:
        workers.check()
        scores = workers.score([Sample("", answer, "3", f"rows:{n}", True) for n, answer in enumerate(answers)])
    assert time.monotonic() - begin < 12
    assert not any(score.kind == "right" for score in scores[:3]) and any(
        score.kind == "timeout" for score in scores[:3]
    )
    assert scores[3:] == [Score(1.0, "right", extracted="6/2"), Score(1.0, "right", extracted=r"\sqrt{9}"),
                          Score(0.0, "wrong", extracted="4")]  # fmt: skip


def test_long_answers_take_no_longer() -> None:
    begin = time.monotonic()
    for part in ("answer is A ", "<answer>", "final answer ", "(A) ", "A. x\n", "$", " ", "\n", "yes ", "no or ", "1, ",
                 "((", "answer " + " " * 50, "*", "'", "\\("):  # fmt: skip
        text = part * 4_000
        for function, truth in (("final", "1"), ("choice", "A"), ("yes_no", "no"), ("relaxed", "1"), ("vqa", "1")):
            judge(function, text, truth, prompt=text)
    assert time.monotonic() - begin < 3
