"""`objective` of the user's own: what its section says the run needs, and what is told where it is mistyped."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import yaml

from mmlaunch.cli.schema import schema
from mmlaunch.errors import RecipeError
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.recipe.check import recipe_of
from mmlaunch.recipe.custom import Custom
from mmlaunch.recipe.plugin import Plugin
from mmlaunch.recipe.reference import ReferenceCopy, ReferenceSync
from mmlaunch.recipe.requirements import Requirements

BARE: dict[str, Any] = {
    "name": "own", "model": {"language": {"random": {"width": 16}}}, "data": {"train": "d.json", "eval": "e.json"},
    "optim": {"lr": 1e-5}, "batch": {"global": 8}, "epochs": 1,
}  # fmt: skip


def recipe(objective: Any, **changes: Any) -> Recipe:
    return recipe_of({**BARE, "objective": objective, **changes})


def wrong(objective: Any, **changes: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        recipe(objective, **changes)
    return [f"{problem.dotted}: {problem.what}; {problem.right}" for problem in caught.value.problems]


def test_a_word_with_a_colon_is_a_class_and_needs_what_sft_needs() -> None:
    own, sft = recipe("my_objective.py:Focal").objective, recipe("sft").objective
    assert isinstance(own, Custom) and own.plugins == {("method",): Plugin("my_objective.py", None, "Focal")}
    assert own.requirements == sft.requirements
    needs = (own.TASK, own.has_scoring_head, own.uses_reference, own.frozen_stages(False, 2), own.evaluation_metrics)
    assert needs == ("train", False, False, [], ["eval/loss"])
    assert recipe({"method": "lab.losses:Focal"}).objective.plugins == {
        ("method",): Plugin(None, "lab.losses", "Focal")
    }


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({"answers": 2}, Requirements(least=2, most=2, prompts=False)),
        ({"answers": 2, "most_answers": "all", "scores": True}, Requirements(least=2, prompts=False, scores=True)),
        ({"most_answers": 4, "earlier_answers": True}, Requirements(most=4)),
        ({"earlier_answers": False}, Requirements(most=1, prompts=False)),
    ],
)
def test_what_examples_need_is_written(options: dict[str, Any], needs: Requirements) -> None:
    assert recipe({"method": "a.py:B", **options}).objective.requirements == needs


def test_a_reference_is_one_as_preferences_have_it() -> None:
    objective = {"method": "a.py:B", "reference": "copy", "reference_stage": 3}
    own, dpo = recipe(objective).objective, recipe({**objective, "method": "dpo"}).objective
    assert own.uses_reference and not own.precomputes_reference and own.frozen_stages(False, 1) == [3]
    assert own.reference_copy == dpo.reference_copy == ReferenceCopy(3, None)
    synced = recipe({"method": "a.py:B", "reference": "copy", "reference_sync": {"every": 9}}).objective
    assert synced.reference_copy == ReferenceCopy(None, ReferenceSync(every=9))
    assert recipe({"method": "a.py:B", "reference": "precomputed"}).objective.precomputes_reference


def test_what_it_measures_can_be_the_best_and_can_stop_the_run() -> None:
    objective = {"method": "a.py:B", "metrics": "confidence", "scoring_head": True}
    changes = {"checkpoint": {"best": "eval/confidence"}, "stop": "eval/confidence", "evaluate": {"every": "9 steps"}}
    whole = recipe(objective, **changes)
    assert whole.objective.has_scoring_head
    assert resolved.text_of(whole).count("confidence") == 3 and "metrics_listed" not in resolved.text_of(whole)
    with pytest.raises(RecipeError) as caught:
        recipe("a.py:B", **changes)
    unlisted = caught.value.problems
    assert [problem.dotted for problem in unlisted] == ["checkpoint.best", "stop.metric"]
    assert "it measures eval/loss; list what else it measures in objective.metrics" in unlisted[0].right


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("dpoo", "objective.method: unknown value 'dpoo'; did you mean dpo?"),
        ("my_objective.py", "names no function or class; write my_code.py:MyObjective or package.module:MyObjective"),
        ("my objective:Focal", "objective.method: 'my objective:Focal' names no function or class"),
        ("custom", "'custom' names no function or class"),
        ({"method": "a.py:B", "answers": 3, "most_answers": 2}, "each example needs 3 answers, and only 2 would"),
        ({"method": "a.py:B", "scoring_head": True, "reference": "copy"}, "gives no log-probabilities to compare with"),
        ({"method": "a.py:B", "reference_stage": 1}, "a reference that is 'none' is no model of its own"),
        ({"method": "a.py:B", "reference_sync": {}}, "a reference that is 'none' cannot be moved; write"),
        ({"method": "a.py:B", "reference": "adapter off"}, "there is no adapter to switch off"),
        ({"method": "a.py:B", "option": {}}, "objective.option: unknown key; did you mean objective.options?"),
        ({"method": "a.py:B", "kwargs": {}}, "did you mean objective.options?"),
        ({"method": "a.py:B", "beta": 0.1}, "objective.beta: unknown key; custom has none, preference has"),
        ({"method": "a.py:B", "answers": 0}, "objective.answers: "),
    ],
)  # fmt: skip
def test_mistakes_are_told(objective: Any, message: str) -> None:
    assert message in "\n".join(wrong(objective))


def test_editors_know_it() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    right: list[Any] = ["a.py:B", "dpo", {"method": "lab.x:B", "options": {"a": 1}}, {"terms": {"sigmoid": 1}}]
    wrong: list[Any] = ["dpoo", {"method": "a.py:B", "beta": 1}, {"method": "dpo", "options": {}}]
    for objective in right:
        assert validator.is_valid({"objective": objective}), objective
    for objective in wrong:
        assert not validator.is_valid({"objective": objective}), objective


def test_what_is_resolved_reads_back() -> None:
    whole = recipe(
        {"method": "a.py:B", "options": {"gamma": 2.0, "names": ["x"]}, "metrics": ["c"], "most_answers": "all"}
    )
    assert recipe_of(yaml.safe_load(resolved.text_of(whole))) == whole
