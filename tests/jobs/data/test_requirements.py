"""What an objective looks at in an example, and why an example cannot serve it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.jobs.small import text

from mmjobs.data.example import Answer
from mmjobs.data.requirements import missing as missing_of
from mmjobs.data.requirements import unpaired_label
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.requirements import Requirements

PAIR = Requirements(least=2, most=2, prompts=False)
WANTED: list[tuple[Any, Requirements]] = [
    ("sft", Requirements(most=1)),
    ("reward", Requirements(least=2, prompts=False)),
    ({"method": "reward", "margin": True}, Requirements(least=2, prompts=False, scores=True)),
    ({"method": "reward", "soft_labels": 0.5}, Requirements(least=2, prompts=False, scores=True)),
    ({"method": "reward", "loss": "regression"}, Requirements(least=1, prompts=False, scores=True)),
    ("dpo", PAIR),
    ("mdpo", replace(PAIR, corrupted=True)),
    ("mpo", PAIR),
    ("mmpo", replace(PAIR, scores=True)),
    ("plackett_luce", replace(PAIR, most=None)),
    ("kto", replace(PAIR, mismatched=True, labelled=True)),
    ({"terms": {"kto": 1, "sigmoid": 1}}, replace(PAIR, mismatched=True)),
    ({"terms": {"kto": 1, "sft": 1}}, replace(PAIR, mismatched=True)),
    ({"terms": {"sigmoid": 1, "margin": 0, "plackett_luce": 0, "image_conditional": 0, "kto": 0}}, PAIR),
    ({"terms": {"kto": 1, "sigmoid": 0}}, replace(PAIR, mismatched=True, labelled=True)),
]


@pytest.mark.parametrize(("objective", "wanted"), WANTED, ids=lambda value: str(value)[:60])
def test_an_objective_looks_at_what_its_terms_read(
    tiny: Callable[..., Recipe], objective: Any, wanted: Requirements
) -> None:
    """A term without weight reads nothing."""
    assert tiny(objective=objective).objective.requirements == wanted


@pytest.mark.parametrize(
    ("requirements", "answers", "label", "missing"),
    [
        (Requirements(), [], None, "has no answer to learn from"),
        (Requirements(), [None], None, None),
        (PAIR, [None], None, "has 1 of 2 answers to learn from"),
        (PAIR, [None], "true", "has 1 of 2 answers to learn from"),
        (PAIR, [None, None], None, None),
        (replace(PAIR, labelled=True), [None], "True", None),
        (replace(PAIR, labelled=True), [None], "0", None),
        (replace(PAIR, labelled=True), [None], "good", "has one answer, and its label is 'good'; write true or false"),
        (replace(PAIR, labelled=True), [None], None, "has one answer, and its label is None; write true or false"),
        (replace(PAIR, labelled=True), [], None, "has 0 of 2 answers to learn from"),
        (replace(PAIR, scores=True), [1.0, None], None, "has no score for each answer"),
        (replace(PAIR, scores=True), [2.0, 1.0, None], None, None),
        (replace(PAIR, scores=True, most=None), [2.0, 1.0, None], None, "has no score for each answer"),
    ],
)  # fmt: skip
def test_what_an_example_lacks_is_said(
    requirements: Requirements, answers: list[float | None], label: str | None, missing: str | None
) -> None:
    example = replace(text("?"), answers=tuple(Answer("a", score) for score in answers), label=label)
    found = missing_of(requirements, example)
    assert found is missing if missing is None else found is not None and found.startswith(missing)


def test_only_a_single_answer_is_desirable_or_not() -> None:
    labels = {"true": 1, "True": 1, "1": 1, "false": -1, "0": -1, "maybe": 0, "": 0, None: 0}
    for label, wanted in labels.items():
        assert unpaired_label(replace(text("?", "a"), label=label)) == wanted
        assert (
            unpaired_label(replace(text("?", "a", "b"), label=label))
            == unpaired_label(replace(text("?"), label=label))
            == 0
        )
