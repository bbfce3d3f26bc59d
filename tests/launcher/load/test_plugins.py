"""Reward functions of the user's own: what is wrong with one is told before anything is queued, and it is kept."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.runs import mmlaunch

from mmlaunch.load import load_recipe, plugins
from mmlaunch.load.plugins import Folders
from mmlaunch.recipe.reward_functions import FUNCTIONS
from mmlaunch.recipe.rewards import RewardSource
from mmlaunch.submit.create_run import create
from mmlaunch.submit.prepare import prepare

Write = Callable[..., Path]
RECIPE = "extends: recipes/ppo_llama3.yaml\nname: own\nobjective:\n  rewards: "
HERE = "resources: {nodes: 1, gpus_per_node: 0, tasks_per_node: 4}\n"
BARE = """\
name: r
model: {language: l, vision: v}
data: {train: d.json}
optim: {lr: 1e-5}
batch: {global: 8}
epochs: 1
"""
EXECUTED = "raise SystemExit('a launcher must not run this')\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which is not the recipe's."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def wrong(recipe: Path, rewards: str) -> list[str]:
    recipe.write_text(RECIPE + rewards)
    loaded = load_recipe(recipe)
    problems = plugins.problems(loaded.recipe, Folders(recipe.parent, Path.cwd()))
    return [f"{problem.dotted}: {problem.what}; {problem.right}" for problem in problems]


def test_one_file_beside_the_recipe_is_all_that_is_needed(write: Write, elsewhere: Path) -> None:
    recipe = write("", "recipes/own.yaml")
    write(EXECUTED + "def reward(answer, truth): return 1.0\n", "recipes/score.py")
    write("def reward(answer, truth): return 1.0\n", "recipes/sub/score.py")
    (elsewhere / "here.py").write_text("def reward(answer, truth): return 1.0\n")
    assert wrong(recipe, "['score.py:reward', 'sub/score.py:reward', 'here.py:reward']") == []
    assert wrong(recipe, f"'{recipe.parent}/score.py:reward'") == []


@pytest.mark.parametrize(
    ("code", "source", "message"),
    [
        ("", "scor.py:reward", "rewards[0].function: no such file: scor.py; did you mean score.py?"),
        ("", "sub/other.py:reward", "no such file: sub/other.py; it is looked for in "),
        ("def reward(answer, truth)\n", "score.py:reward", "score.py:1 does not compile: expected ':'"),
        ("def f(a, b):\n  pass\nreturn 3\n", "score.py:f", "score.py:3 does not compile: 'return' outside function"),
        ("x = '\0'", "score.py:reward", "score.py does not compile: "),
        (b"x = '\xff'\n", "score.py:reward", "cannot be read: 'utf-8' codec"),
        ("def rewards(a, b): pass\n", "score.py:reward", "score.py defines no reward; did you mean score.py:rewards?"),
        ("def good(a, b): pass\n", "score.py:reward", "score.py defines no reward; it defines good"),
        ("class A:\n  def reward(a, b): pass\n", "score.py:reward", "it defines no function"),
        ("async def reward(a, b): pass\n", "score.py:reward", "reward is async; write def reward(answer, truth)"),
        ("def reward(a): pass\n", "score.py:reward", "does not take an answer and its truth"),
        ("def reward(a, b, scale): pass\n", "score.py:reward", "needs a value for scale; add options: {scale: ...}"),
        ("def reward(a, b, *, scale): pass\n", "score.py:reward", "needs a value for scale"),
        ("def reward(a, b, *, scale=1): pass\n", "{function: 'score.py:reward', options: {scal: 2}}",
         "rewards[0].options.scal: reward has no option scal; did you mean scale?"),
        ("def reward(a, b): pass\n", "{function: 'score.py:reward', options: {a: 2}}", "reward has no option a"),
        ("", "laboratory_x.rewards:helpful", "no module laboratory_x; install it here"),
        ("", "mmlaunch.rewards:helpful", "no module mmlaunch.rewards; install it here"),
        ("", "mmlaunch.errors:helpful", "mmlaunch.errors defines no helpful; "),
        ("", "score:reward", "score defines no reward; it defines no function"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(write: Write, elsewhere: Path, code: str | bytes, source: str, message: str) -> None:
    recipe = write("", "recipes/own.yaml")
    write(code, "recipes/score.py")
    (elsewhere / "score.py").write_text("")
    found = wrong(recipe, source if source.startswith("{") else f"'{source}'")
    assert len(found) == 1 and message in found[0], found


@pytest.mark.parametrize(
    "code",
    [
        "def reward(answer, truth, prompt, *, finished, scale=1): pass",
        "def reward(answer, truth, *, truths, origin): pass",
        "def reward(*everything, **named): pass",
        "try:\n    from math import fsum as reward\nexcept ImportError:\n    reward = None",
        "import functools\nif True:\n    reward = functools.partial(print, 'x')",
        "from os.path import *",
        "def __getattr__(name): return print",
        "@staticmethod\ndef reward(): pass",
    ],
)
def test_what_may_be_called_passes(write: Write, code: str) -> None:
    write(code, "recipes/score.py")
    assert wrong(write("", "recipes/own.yaml"), "'score.py:reward'") == []


def test_a_module_is_looked_for_without_importing_it(write: Write, elsewhere: Path) -> None:
    lab = elsewhere / "lab_of_rewards"
    (lab / "inner").mkdir(parents=True)
    for file in (lab / "__init__.py", lab / "inner" / "__init__.py"):
        file.write_text(EXECUTED)
    (lab / "inner" / "scores.py").write_text(EXECUTED + "def helpful(answer, truth): return 1\n")
    recipe = write("", "recipes/own.yaml")
    assert wrong(recipe, "'lab_of_rewards.inner.scores:helpful'") == []
    assert wrong(recipe, "'lab_of_rewards.inner.scores:helpfull'")[0].endswith(
        "did you mean lab_of_rewards.inner.scores:helpful?"
    )
    assert wrong(recipe, "'lab_of_rewards.outer:helpful'")[0].startswith("objective.rewards[0].function: no module")
    assert not [name for name in sys.modules if name.startswith("lab_of_rewards")]


def test_the_examples_of_the_documentation_are_right(write: Write) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "rewards.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    assert [language for language, _ in blocks] == ["yaml", "python", "yaml"]
    write(blocks[1][1], "recipes/score.py")
    for text in (blocks[0][1], blocks[2][1]):
        recipe = load_recipe(write(BARE + text, "recipes/own.yaml")).recipe
        assert recipe.objective.reward_sources
        assert plugins.problems(recipe, Folders(write("", "recipes/x").parent, Path.cwd())) == []
    fields = {*RewardSource.model_fields, *(name for kind in FUNCTIONS.values() for name in kind.model_fields)}
    assert not [name for name in fields if f"`{name}" not in page]
    assert all(f"| `{name}` |" in page for name in FUNCTIONS)


def test_validate_and_submit_refuse_it_at_its_place(write: Write) -> None:
    recipe = write(RECIPE + "[runs/rm, 'score.py:reward']\n" + HERE, "recipes/own.yaml")
    for command in (("validate",), ("submit", "--cluster", "local")):
        refused = mmlaunch(*command, recipe)
        assert refused.returncode == 2, refused.stdout
        assert f"{recipe}:4:22: objective.rewards[1].function: no such file: score.py" in refused.stderr


def test_the_run_keeps_the_file_that_it_was_submitted_with(write: Write, own_home: Path) -> None:
    recipe = write(RECIPE + "['score.py:reward', 'sub/score.py:reward']\n" + HERE, "recipes/own.yaml")
    for name in ("score.py", "sub/score.py"):
        write(f"def reward(answer, truth): return '{name} ä'\n", f"recipes/{name}")
    prepared = prepare(load_recipe(recipe), "local")
    create(prepared)
    run = prepared.plan.run
    write("def reward(answer): pass\n", "recipes/score.py")  # a later edit
    for name in ("score.py", "sub/score.py"):
        assert f"'{name} ä'" in run.plugin_file(name).read_text(encoding="utf-8")
    assert len(list(run.plugin_files.iterdir())) == 2
    assert run.plugin_file("score.py").stat().st_mode & 0o777 == 0o444
    folders = prepared.plugin_folders
    assert plugins.problems(prepared.plan.recipe, folders) == []  # the copy is what counts
    assert plugins.files(prepared.plan.recipe, folders) == {}
    write("def reward(answer, truth): return 1\n", "recipes/new.py")
    resumed = load_recipe(recipe, ["objective.rewards.0=new.py:reward"]).recipe  # a resume that names another one
    assert list(plugins.files(resumed, folders)) == [run.plugin_file("new.py").name]
