"""`objective.rewards`: reward runs and functions, in every form that a recipe may write, and their mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmlaunch.errors import RecipeError
from mmlaunch.load import Loaded, load_recipe
from mmlaunch.recipe.plugin import Plugin
from mmlaunch.recipe.reinforcement import Ppo
from mmlaunch.recipe.resolved import read, text_of
from mmlaunch.recipe.reward_functions import FUNCTIONS, Exact, Numeric
from mmlaunch.recipe.rewards import RewardSource

Write = Callable[..., Loaded]
ANSWERED = "data: {train: {path: data/answered.json, format: llava}}\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """The PPO recipe with these rewards in the place of its own."""

    def _write(rewards: str, *overrides: str) -> Loaded:
        path = tmp_path / "recipe.yaml"
        path.write_text(f"extends: recipes/ppo_llama3.yaml\nname: own\n{ANSWERED}objective:\n  {rewards}\n")
        return load_recipe(path, overrides)

    return _write


def sources(loaded: Loaded) -> list[RewardSource]:
    assert isinstance(loaded.recipe.objective, Ppo)
    return loaded.recipe.objective.rewards


def test_a_word_is_a_run_or_a_function(write: Write) -> None:
    assert [source.path for source in sources(write("rewards: runs/rm"))] == ["runs/rm"]
    assert [source.function for source in sources(write("rewards: exact"))] == ["exact"]
    own, lab, run = sources(write("rewards: [sub/score.py:reward, lab.rewards:helpful, rm-1128]"))
    assert own.plugin == Plugin("sub/score.py", None, "reward")
    assert lab.plugin == Plugin(None, "lab.rewards", "helpful")
    assert (run.path, run.function, run.plugin) == ("rm-1128", None, None)


def test_options_are_read_by_the_function_that_is_shipped(write: Write) -> None:
    text = "rewards: [{function: numeric, options: {tolerance: 1e-3}, weight: -2, deadline: 30s}, exact]"
    numeric, exact = sources(write(text))
    assert numeric.options == Numeric(tolerance=1e-3) and (numeric.weight, numeric.deadline) == (-2.0, 30)
    assert numeric.keywords == {"tolerance": 1e-3, "relative": 1e-6}
    assert exact.options == Exact() and exact.deadline == 10
    own = sources(write("rewards: {function: a.py:f, options: {words: [1, no, 0.5], deep: {a: true}}}"))[0]
    assert own.keywords == {"words": [1, "no", 0.5], "deep": {"a": True}}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_resolved_reads_back(write: Write, tmp_path: Path, name: str) -> None:
    options = {"format": "{pattern: 'a.*'}", "length": "{most: 400}"}
    options |= dict.fromkeys(("chair", "amber"), "{synonyms: {dog: [puppy]}}")
    source = f"{{function: {name}, options: {options.get(name, '{}')}}}"
    loaded = write(f"rewards: [{source}, {{path: runs/rm, standardise: false}}, 'a.py:f']")
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(text_of(loaded.recipe))
    assert read(resolved) == loaded.recipe


def test_a_table_of_synonyms_is_written_or_read_from_a_file(write: Write, tmp_path: Path) -> None:
    table = {"dog": ["puppy", "hound"], "hot dog": []}
    (tmp_path / "words.txt").write_text("dog, puppy, hound\n\nhot dog\n")
    (tmp_path / "words.json").write_text('{"dog": ["puppy", "hound"], "hot dog": null}')
    for written in ("{dog: [puppy, hound], hot dog: []}", f"{tmp_path}/words.txt", f"{tmp_path}/words.json"):
        chair = sources(write(f"rewards: {{function: chair, options: {{synonyms: {written}}}}}"))[0]
        assert chair.keywords == {"synonyms": table}
    (tmp_path / "words.txt").write_text("cat\n")  # a later edit
    assert chair.keywords == {"synonyms": table}
    for written, message in ((f"{tmp_path}/none.txt", "none.txt cannot be read"), ("[a]", "a mapping or a file")):
        with pytest.raises(RecipeError, match=message):
            write(f"rewards: {{function: chair, options: {{synonyms: {written}}}}}")


def test_a_metric_has_a_name_and_a_direction(write: Write) -> None:
    text = "rewards: [relaxed, {function: amber, options: {measure: hallucination, synonyms: {a: b}}}, "
    text += (
        "{function: amber, options: {synonyms: {a: b}}}, {function: chair, options: {synonyms: {a: b}}}, 'a.py:f', rm]"
    )
    named = [(source.metric, source.lower_is_better) for source in sources(write(text))]
    assert named == [
        ("relaxed", False), ("amber_hallucination", True), ("amber_coverage", False), ("chair", True),
        ("a.py:f", False), ("reward", False),
    ]  # fmt: skip


def test_one_source_is_changed_like_a_list_of_one(write: Write) -> None:
    for path in ("objective.rewards.0", "objective.rewards[0]", "objective.rewards"):
        assert sources(write("kl: 0.2", f"{path}.weight=2"))[0].weight == 2.0
    base = "rewards: {function: numeric, options: {tolerance: 1}, weight: 2}"
    assert sources(write(base))[0].weight == 2.0  # laid over the run of the PPO recipe: one kind replaces the other
    changed = sources(write("rewards: exact", "objective.rewards.options={case: true}"))[0]
    assert changed.options == Exact(case=True)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        *((f"{name}: exact", rf"objective\.{name}: unknown key; did you mean objective\.rewards\?") for name in (
            "reward", "reward_model", "reward_model_path", "reward_fn", "reward_funcs")),
        ("rewards: []", "ppo has no rewards"),
        ("rewards: [{weight: 2}]", r"rewards\[0\]: neither a reward run nor a function; add path: .* or function: "),
        ("rewards: [{path: runs/rm, function: exact}]", "both a reward run and a function"),
        ("rewards: [{path: runs/rm, options: {a: 1}}]", "options: a reward run has none"),
        ("rewards: [{path: runs/rm, deadline: 3s}]", "deadline: a reward run has none"),
        ("rewards: [{function: exact, standardise: true}]", "standardise: a function has none"),
        ("rewards: [{function: exakt}]", "no function 'exakt' comes with mmlaunch; did you mean exact?"),
        ("rewards: [{function: own}]", r"write score.py:own, or one of exact, numeric"),
        ("rewards: ['a b:c']", "names no function or class; write my_code.py:reward or package.module:reward"),
        ("rewards: [{function: exact, timeout: 3s}]", r"did you mean objective.rewards\[0\].deadline\?"),
        ("rewards: [{function: exact, deadline: 10}]", "'10' has no unit; write 10s"),
        ("rewards: [exact, {function: numeric, options: {tolerence: 1}}]",
         r"recipe.yaml:5:50: objective.rewards\[1\].options.tolerence: .* did you mean .*\.options\.tolerance\?"),
        ("rewards: [{function: exact, options: {pattern: a}}]", "exact has none, format has; remove it"),
        ("rewards: [{function: choice, options: {x: 1}}]", "options.x: unknown key; none is known here"),
        ("rewards: [{function: numeric, options: {tolerance: wide}}]", "tolerance: a number is wanted here, this is"),
        ("rewards: [{function: numeric, options: {tolerance: -1}}]", "tolerance: '-1' is out of range"),
        ("rewards: [{function: format}]", "options.pattern: missing; write pattern:"),
        ("rewards: [{function: format, options: {pattern: '('}}]", r"'\(' is no regular expression: missing \)"),
        ("rewards: chair", r"options.synonyms: missing; write synonyms: \{dog: \[puppy, hound\]\}"),
        ("rewards: [{function: amber, options: {synonyms: {}}}]", "options.synonyms: "),
        ("rewards: [{function: amber, options: {synonyms: {a: b}, measure: x}}]", "options.measure: "),
        ("rewards: [{function: length}]", "options: nothing says how long"),
        ("rewards: [{function: length, options: {target: 1, most: 2}}]", "both target and most"),
        ("rewards: [{function: 'a.py:f', options: 3}]", "a mapping is wanted here"),
    ],
)  # fmt: skip
def test_mistakes_and_what_is_right(write: Write, rewards: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        write(rewards)
