"""Plugins: a format, a term, a reward and a tracker beside a recipe are those that the run was submitted with."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from tests.runs import ended, mmlaunch, submit, wait_for

from mmlaunch.errors import RecipeError
from mmlaunch.load import load_recipe, plugins
from mmlaunch.load.plugins import Folders
from mmlaunch.recipe.plugin import Plugin, plugin_of

ROOT = Path(__file__).resolve().parents[3]
FORMAT = """\
from mmjobs.data.example import Answer, Example, Turn
from mmjobs.data.readers.rows import examples


def rows(source):
    def example(row):
        better, worse = row.text("good"), row.text("bad")
        return Example((), (Turn("user", (row.text("ask"),)),), (Answer(better), Answer(worse)), row.origin)

    return examples(source, "my format", ["ask"], example)
"""
TERM = """\
import torch


def softer(pairs, settings):
    \"\"\"DPO with a temperature of its own.\"\"\"
    gap = pairs.chosen.log_ratio - pairs.rejected.log_ratio
    return -torch.nn.functional.logsigmoid(pairs.beta * gap / settings.options["temperature"])
"""
TRACKER = """\
class Tracker:
    def __init__(self, run):
        self.file = run.folder / "losses.txt"

    def log(self, values, step):
        if "train/loss/softer" in values:
            with self.file.open("a") as file:
                file.write(f"{step} {values['train/loss/softer']}\\n")

    def close(self, done):
        pass
"""
REWARD = """\
def reward(answer, truth=None):
    return float(len(answer))
"""
RECIPE = """\
name: plugins
model:
  language: {random: {width: 16, layers: 1, heads: 2}}
data:
  train: {path: rows.jsonl, format: "my_format.py:rows"}
  workers: WORKERS
objective: {terms: {"my_terms.py:softer": {weight: 0.5, options: {temperature: 2.0}}, sft: 0.1}, beta: 0.2}
optim: {lr: 1e-3}
batch: {global: 4}
steps: 3
precision: fp32
log: {every: 1, tensorboard: false, trackers: "my_tracker.py:Tracker"}
resources: {nodes: 1, gpus_per_node: 0, tasks_per_node: 2, cpus_per_rank: 1}
"""
GRPO = """\
objective: {method: grpo, rollouts: 4, sampling: {answers: 2, max_new_tokens: 4}, rewards: "my_reward.py:reward"}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    rows = [{"ask": f"What is {number}?", "good": f"It is {number}.", "bad": "No."} for number in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"my_format.py": FORMAT, "my_terms.py": TERM, "my_tracker.py": TRACKER, "my_reward.py": REWARD}
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "plugins.yaml").write_text(RECIPE.replace("WORKERS", "1"))
    (folder / "grpo.yaml").write_text(re.sub("objective: .*\n", GRPO, RECIPE.replace("WORKERS", "0")))
    monkeypatch.chdir(folder)
    return folder / "plugins.yaml"


def test_a_run_has_the_plugins_that_it_was_submitted_with(recipe: Path) -> None:
    run = submit(recipe)
    for name in ("my_format.py", "my_terms.py", "my_tracker.py", "my_reward.py"):
        (recipe.parent / name).write_text("raise RuntimeError('edited after the run was submitted')\n")
    events = wait_for(run, ended)
    assert [event["state"] for event in events if event["event"] == "ended"] == ["done"], run.attempt(1).logs
    losses = {event["step"]: event["loss/softer"] for event in events if event["event"] == "step"}
    tracked = run.tracker("0-Tracker") / "losses.txt"
    assert tracked.read_text().splitlines() == [f"{step} {loss}" for step, loss in sorted(losses.items())]
    assert sorted(path.stem.rpartition("-")[0] for path in run.plugin_files.iterdir()) == [
        "my_format", "my_terms", "my_tracker",
    ]  # fmt: skip
    done = mmlaunch("resume", run.name, "-s", "steps=5")
    assert done.returncode == 0, done.stderr
    assert "note: my_terms.py was edited: the run goes on with the copy that it has" in done.stdout
    events = wait_for(run, lambda all_of_them: sum(event["event"] == "ended" for event in all_of_them) == 2)
    assert [event["state"] for event in events if event["event"] == "ended"] == ["done", "done"]
    assert [line.split()[0] for line in tracked.read_text().splitlines()] == ["1", "2", "3", "4", "5"]


def blocks_of_the_page(page: str) -> tuple[str, str]:
    """The recipe and the class that a page shows for an objective of the user's own."""
    found = re.findall(r"```(yaml|py)\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    ((recipe, code),) = [(text, below) for (_, text), (kind, below) in pairwise(found) if "\nclass Focal" in below]
    return recipe, code


@pytest.mark.parametrize("goes_on", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_the_objective_of_the_documentation_does_all_that_others_do(
    recipe: Path, tmp_path: Path, goes_on: bool
) -> None:
    """The copy counts: the file is spoilt once the run is submitted."""
    text, code = blocks_of_the_page("extending.md")
    file = recipe.with_name("my_objective.py")
    file.write_text(code)
    own = recipe.with_name("own.yaml")
    base = re.sub("objective: .*\n|log: .*\n", "", recipe.read_text())
    own.write_text(base + text + "log: {every: 1, tensorboard: false}\n")
    held_out = 'data.eval={path: rows.jsonl, format: "my_format.py:rows", limit: 3}'
    rest = ("-s", held_out, "-s", "checkpoint.every=1 steps", "-s", "evaluate.every=1 steps")
    assert "my_objective.py:Focal" in mmlaunch("validate", own, *rest).stdout
    for command in ("estimate", "render"):
        done = mmlaunch(command, own, *rest, "--cluster", "local")
        assert done.returncode == 0, done.stderr
    run = submit(own, *rest)
    for spoilt in (file, recipe.with_name("my_format.py")):
        spoilt.write_text("raise RuntimeError('edited after the run was submitted')\n")
    events = wait_for(run, ended)
    assert [event["state"] for event in events if event["event"] == "ended"] == ["done"], run.attempt(1).logs
    assert all(0 < event["confidence"] < 1 for event in events if event["event"] == "step")
    if not goes_on:
        return
    done = mmlaunch("resume", run.name, "-s", "steps=5")
    assert done.returncode == 0, done.stderr
    events = wait_for(run, lambda all_of_them: sum(event["event"] == "ended" for event in all_of_them) == 2)
    assert [event["state"] for event in events if event["event"] == "ended"] == ["done", "done"]
    measured = [event["metrics"]["eval/confidence"] for event in events if event["event"] == "evaluated"]
    assert len(measured) >= 5 and "done" in mmlaunch("status", run.name).stdout
    for arguments in (
        ("export", run.name, "--to", str(tmp_path / "out")),
        ("compare", run.name, run.name),
    ):
        done = mmlaunch(*arguments)
        assert done.returncode == 0, done.stderr


def test_an_objective_that_is_not_there_is_said_at_its_place(recipe: Path) -> None:
    recipe.with_name("my_objective.py").write_text(
        "class Focal:\n    units = None\n    def __call__(self, network, batch): ...\n"
        "class Bare:\n    def units(self, batch): ...\nclass More(Bare): ...\n"
    )
    own = recipe.with_name("own.yaml")
    for written, right in (
        ("my_objective.py:Focl", "my_objective.py defines no Focl; did you mean my_objective.py:Focal?"),
        ("my_objectiv.py:Focal", "no such file: my_objectiv.py; did you mean my_objective.py?"),
        ("nowhere.losses:Focal", "no module nowhere"),
        ("my_objective.py:Bare", "Bare has no __call__; write def __call__(self, network, batch)"),
    ):
        own.write_text(re.sub("objective: .*\n", f"objective: {written}\n", recipe.read_text()))
        refused = mmlaunch("validate", own)
        line = own.read_text().splitlines().index(f"objective: {written}") + 1
        assert refused.returncode == 2 and f"own.yaml:{line}:12: objective.method: {right}" in refused.stderr
    own.write_text(re.sub("objective: .*\n", "objective: dpoo\n", recipe.read_text()))
    assert "unknown value 'dpoo'; did you mean dpo?" in mmlaunch("validate", own).stderr
    assert not problems(recipe, "objective=my_objective.py:More"), "what it inherits is not looked at"


@pytest.fixture
def lab(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same plugins in a package beside the recipe; one of the same name on PYTHONPATH cannot be imported."""
    folder = recipe.with_name("lab")
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "losses.py").write_text(TERM + blocks_of_the_page("extending.md")[1])
    (folder / "settings.json").write_text('{"ask": "ask"}')
    reads = "import json\nfrom pathlib import Path\n\n"
    reads += 'NAMES = json.loads(Path(__file__).with_name("settings.json").read_text())\n'
    (folder / "data.py").write_text(reads + FORMAT.replace('row.text("ask")', 'row.text(NAMES["ask"])'))
    (folder / "inner" / "watch.py").write_text("from lab.data import NAMES\n\n\n" + TRACKER)
    (folder / "inner" / "scores.py").write_text("from lab.data import NAMES\n\n\n" + REWARD)
    other = tmp_path / "path" / "lab"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise RuntimeError('this is another package')\n")
    monkeypatch.setenv("PYTHONPATH", str(other.parent))
    for name in ("plugins.yaml", "grpo.yaml"):
        text = recipe.with_name(name).read_text()
        for file, module in (
            ("my_format.py", "lab.data"), ("my_terms.py", "lab.losses"), ("my_tracker.py", "lab.inner.watch"),
            ("my_reward.py", "lab.inner.scores"),
        ):  # fmt: skip
            text = text.replace(file, module)
        recipe.with_name(name).write_text(text)
    return folder


def spoil(lab: Path) -> None:
    """What is edited after a run was submitted."""
    for file in lab.rglob("*.py"):
        file.write_text("raise RuntimeError('edited after the run was submitted')\n")
    (lab / "settings.json").unlink()


@pytest.mark.nightly  # the lookup and the copy are in load/test_packages.py, the same with files is above
def test_a_run_has_the_package_that_it_was_submitted_with(recipe: Path, lab: Path) -> None:
    shown = mmlaunch("data", recipe, "--samples", "1")
    assert shown.returncode == 0 and "What is 0?" in shown.stdout, shown.stderr
    run = submit(recipe)
    spoil(lab)
    events = wait_for(run, ended)
    assert [event["state"] for event in events if event["event"] == "ended"] == ["done"], run.attempt(1).logs
    assert json.loads(run.environment.read_text())["plugins"] == {"lab": {"copied from": str(lab)}}
    assert (run.plugin_files / "lab" / "settings.json").is_file()
    focal = ["objective={method: 'lab.losses:Focal', options: {gamma: 2}}", "steps=5"]
    done = mmlaunch("resume", run.name, "-s", focal[0], "-s", focal[1])
    assert done.returncode == 0, done.stderr
    events = wait_for(run, lambda all_of_them: sum(event["event"] == "ended" for event in all_of_them) == 2)
    assert [event["state"] for event in events if event["event"] == "ended"] == ["done", "done"]
    assert [event["step"] for event in events if "confidence" in event] == [4, 5]


@pytest.mark.nightly  # ten seconds; tests/jobs/rollout/rewards/test_workers.py tests a worker
def test_a_reward_in_a_package(recipe: Path, lab: Path) -> None:
    run = submit(recipe.with_name("grpo.yaml"))
    spoil(lab)
    events = wait_for(run, ended)
    assert [event["state"] for event in events if event["event"] == "ended"] == ["done"], run.attempt(1).logs
    assert all(event["reward"] > 0 for event in events if event["event"] == "step")


@pytest.mark.nightly  # ten seconds; the copy of a reward's file is tested by tests/launcher/load/test_plugins.py
def test_a_reward_beside_them(recipe: Path) -> None:
    run = submit(recipe.with_name("grpo.yaml"))
    (recipe.parent / "my_reward.py").write_text("raise RuntimeError('edited after the run was submitted')\n")
    events = wait_for(run, ended)
    assert [event["state"] for event in events if event["event"] == "ended"] == ["done"], run.attempt(1).logs
    assert all(event["reward"] > 0 for event in events if event["event"] == "step")


def test_commands_without_a_run_read_the_files_themselves(recipe: Path) -> None:
    shown = mmlaunch("data", recipe, "--samples", "1")
    assert shown.returncode == 0 and "What is 0?" in shown.stdout, shown.stderr
    assert mmlaunch("validate", recipe, recipe.with_name("grpo.yaml")).returncode == 0


def problems(recipe: Path, *overrides: str) -> str:
    loaded = load_recipe(recipe, overrides)
    found = plugins.problems(loaded.recipe, Folders(recipe.parent, Path.cwd()))
    return "\n".join(str(loaded.placed([problem]).problems[0]) for problem in found)


@pytest.mark.parametrize(
    ("override", "right"),
    [
        ("data.train.format=my_format.py:row", "my_format.py defines no row; did you mean my_format.py:rows?"),
        ("data.train.format=my_formats.py:rows", "no such file: my_formats.py; did you mean my_format.py?"),
        ("data.train.format=nowhere.formats:rows", "no module nowhere"),
        ("log.trackers=my_tracker.py:Trackers", "did you mean my_tracker.py:Tracker?"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_queued(recipe: Path, override: str, right: str) -> None:
    assert right in problems(recipe, override)
    assert not problems(recipe)


@pytest.mark.parametrize(
    ("override", "right"),
    [
        ("data.train.format=llavas", "did you mean llava?"),
        ("data.train.format='my format.py:1st'", "write my_code.py:rows or package.module:rows"),
        ("log.trackers=wandd", "did you mean wandb?"),
        ("log.trackers=neptune", "write one of wandb, mlflow, trackio, or my_tracker.py:Tracker"),
        ("objective.terms={'a.py:sigmoid': 1}", "two terms are called sigmoid; give the function another name"),
        ("objective.terms={'a.py:x': 1, 'b.py:x': 1}", "two terms are called x"),
        ("objective.terms={'a.py:x-y': 1}", "write my_code.py:my_loss or package.module:my_loss"),
    ],
)
def test_names_that_cannot_be_right(recipe: Path, override: str, right: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(right)):
        load_recipe(recipe, [override])


def test_a_term_says_what_it_needs(recipe: Path) -> None:
    objective = load_recipe(recipe).recipe.objective
    assert objective.uses_reference and not objective.requirements.scores
    own = {"my_terms.py:softer": {"options": {"temperature": 1}, "reference": False, "scores": True}}
    free = load_recipe(recipe, [f"objective.terms={json.dumps(own)}"]).recipe.objective
    assert not free.uses_reference and free.requirements.scores and "loss/softer" in free.metrics


def test_names_of_plugins() -> None:
    assert plugin_of("lab.losses:softer") == Plugin(None, "lab.losses", "softer")
    assert plugin_of("sub/my.py:f") == Plugin("sub/my.py", None, "f") and plugin_of("sub/my.py:f") is not None
    assert [plugin_of(text) for text in ("rows", "a b:c", "stage:sft/x", "my.py:")] == [None] * 4
