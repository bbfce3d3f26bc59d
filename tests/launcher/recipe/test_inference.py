"""Recipes of tasks that train nothing: what is refused before anything is queued."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmlaunch.errors import RecipeError
from mmlaunch.load import load_recipe
from mmlaunch.load.plugins import Folders, problems
from mmlaunch.recipe.data import Source, names

EVALUATE = Path("recipes/evaluate_llama3.yaml")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("objective.metric=exakt", "'exakt' is no function that comes with mmlaunch.*did you mean exact?"),
        ("objective.metric=runs/rm", "'runs/rm' is no function"),
        ("objective.metric={vqa_vol: vqa, all: exact}", "no source is called vqa_vol; did you mean vqa_val?"),
        ("objective.metric={vqa_val: vqa}", "none for chartqa_test, mathvista; add .*metric.chartqa_test, or all"),
    ],
)  # fmt: skip
def test_a_metric_that_verifies_nothing_is_refused(change: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe(EVALUATE, [change])


def test_correctness_takes_no_reward_run_for_a_metric() -> None:
    with pytest.raises(RecipeError, match="'runs/rm' is no function"):
        load_recipe(Path("recipes/correctness_llama3.yaml"), ["objective.metric=runs/rm"])


@pytest.mark.parametrize(
    ("metric", "refused"),
    [
        ("{function: chair, options: {synonyms: {dog: []}}}", "chair is lower for better answers"),
        ("{function: amber, options: {measure: hallucination, synonyms: {dog: []}}}", "amber_hallucination is lower"),
        ("{function: amber, options: {synonyms: {dog: []}}}", ""),
    ],
)
def test_correctness_takes_no_metric_where_lower_is_better(metric: str, refused: str) -> None:
    """Those with a high score are chosen: the answers with most hallucinations would be."""
    recipe = Path("recipes/correctness_llama3.yaml")
    if not refused:
        assert load_recipe(recipe, [f"objective.metric={metric}"]).recipe.objective.method == "correctness"
        return
    with pytest.raises(RecipeError, match=refused):
        load_recipe(recipe, [f"objective.metric={metric}"])


def test_the_file_of_a_metric_is_named_with_its_place() -> None:
    recipe = load_recipe(EVALUATE, ["objective.metric={mathvista: nofile.py:f, all: exact}"]).recipe
    (problem,) = problems(recipe, Folders(Path("recipes"), Path("recipes").absolute()))
    assert problem.dotted == "objective.metric.mathvista.function" and problem.right.count("recipes") == 1


def test_no_two_sources_are_called_the_same() -> None:
    paths = ("a/test.jsonl", "b/test.jsonl", "c/b/test.jsonl", "vqa.tsv", "vqa.tsv", "d/other")
    expected = ["a/test", "b/test-2", "b/test-3", "vqa-4", "vqa-5", "other"]
    assert names([Source(path=path) for path in paths]) == expected


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ("{method: dropout_ntp, start_ratoi: 0.4}", "objective.start_ratoi: unknown key; did you mean .*start_ratio?"),
        ("{method: dropout_ntp, metric: exact}", "dropout_ntp has none, evaluate and correctness has"),
        ("{method: score, rewards: {function: yes_no, options: {cse: 1}}}", "options.cse: unknown key; none is known"),
    ],
)
def test_a_section_of_two_words_knows_its_own_keys(objective: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("recipes/dropout_ntp_llama3.yaml"), [f"objective={objective}"])
    assert [bool(re.search(says, str(problem))) for problem in caught.value.problems] == [True]
