"""Growing the house: one of each kind is added to a copy of it, and nothing else has to change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

TERM = '''"""A term of its own."""

import torch

from mmjobs.objectives.policy_vs_reference import PolicyVsReference
from mmjobs.objectives.terms.term import term
from mmlaunch.recipe.terms import Term


@term()
def squared(pairs: PolicyVsReference, options: Term) -> torch.Tensor:
    """The squared distance of the log-ratios from 1."""
    return (pairs.beta * pairs.gap - 1) ** 2
'''

FORMAT = '''"""The `tsv` format: a question, a better answer and a worse one on each line, with tabs between them."""

from functools import partial
from pathlib import Path

from mmjobs.data.example import Answer, Example, LazyExamples, Origin, Turn


class Lines(LazyExamples):
    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, path.read_text().splitlines()

    def __len__(self) -> int:
        return len(self.lines)

    def at(self, place: int) -> Example:
        question, *answers = self.lines[place].split("\\t")
        turns = (Turn("user", (question,)),)
        return Example((), turns, tuple(Answer(text) for text in answers), Origin(str(self.path), place))


def recognises(path: Path) -> bool:
    return path.suffix == ".tsv"


def rows(source) -> Lines:
    return Lines(Path(source.path))
'''

PROJECTOR = '''"""The `twice` projector: one layer, used twice."""

from torch import nn

from mmjobs.model.projectors.widths import Widths


class Twice(nn.Module):
    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(widths.vision, widths.language), nn.Linear(widths.language, widths.language)

    def forward(self, features):
        return self.again(self.again(self.first(features)))


build = Twice


def features(widths: Widths) -> int:
    return widths.patches
'''

CAUSE = """    Cause(
        "coffee",
        budget="final",
        why="Somebody spilt coffee",
        final="it would fail again: the keyboard is wet",
        next="dry it, then mmlaunch resume {run}",
        log_pattern=re.compile("coffee machine"),
    ),
"""

TASK = '''"""The task `count`: the number of training rows."""

from mmjobs.data.formats.registry import parts


def run(recipe, paths, stop, position, watch):
    return {"rows": sum(len(part.rows) for source in recipe.data.train for part in parts(source))}
'''

SECTION = '''class Count(Method):
    """Count the rows."""

    TASK: ClassVar[str] = "count"

    method: Literal["count"]


'''

COMMAND = '''"""`mmlaunch greet`: say hello."""

import click


@click.command()
def command() -> None:
    """Say hello."""
    click.echo("hello from outside")
'''

RECIPE = """\
name: grown
model:
  vision: {{random: {{width: 16, layers: 2, heads: 2, image_size: 16, patch: 8}}}}
  projector: twice
  language: {{random: {{width: 16, layers: 1, heads: 2, max_positions: 128}}}}
data: {{train: {rows}, workers: 0}}
objective: {objective}
optim: {{lr: 1e-3}}
batch: {{global: 4}}
steps: 2
precision: fp32
log: {{every: 1, tensorboard: false}}
resources: {{nodes: 1, gpus_per_node: 0, tasks_per_node: 1, cpus_per_rank: 1, time: 10m}}
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages in a folder, first on the path of the processes that the tests start."""
    folder = tmp_path_factory.mktemp("house")
    for source in (ROOT / "launcher" / "mmlaunch", ROOT / "jobs" / "mmjobs"):
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("templates", "recipes"):
        shutil.copytree(ROOT / name, folder / "mmlaunch" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def insert(path: Path, before: str, text: str) -> None:
    """One row more in a table."""
    content = path.read_text()
    assert content.count(before) == 1, f"{before!r} stands {content.count(before)} times in {path.name}"
    path.write_text(content.replace(before, text + before))


def run(house: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(house)}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_term_a_format_and_a_projector_are_trained_with(house: Path, tmp_path: Path) -> None:
    """Each is one file and its name in the schema; one run uses all three."""
    recipe = house / "mmlaunch" / "recipe"
    (house / "mmjobs" / "objectives" / "terms" / "own.py").write_text(TERM)
    insert(recipe / "terms.py", "    plackett_luce: Term | None = None\n", "    squared: Term | None = None\n")
    (house / "mmjobs" / "data" / "formats" / "tsv.py").write_text(FORMAT)
    insert(recipe / "data.py", '    "shapes": Format(', '    "tsv": Format(scores=False),\n')
    (house / "mmjobs" / "model" / "projectors" / "twice.py").write_text(PROJECTOR)
    insert(recipe / "model.py", '"linear", "mlp", "vit", "perceiver", "pixel_shuffle"]', '"twice", ')
    rows = tmp_path / "rows.tsv"
    rows.write_text("".join(f"question {n}\tyes\toh no\n" for n in range(8)))
    written = tmp_path / "grown.yaml"
    written.write_text(RECIPE.format(rows=rows, objective="squared"))
    arguments = ["-m", "mmlaunch", "submit", str(written), "--cluster", "local", "--follow"]
    run(house, *arguments)
    (ledger,) = Path(os.environ["MMLAUNCH_RUNS"]).glob("grown-*/events.jsonl")
    events = [json.loads(line) for line in ledger.read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    assert steps[0]["loss"] == pytest.approx(1.0, abs=1e-5), "the policy is its own reference yet"
    assert steps[0]["loss/squared"] == steps[0]["loss"] and steps[-1]["step"] == 2
    assert run(house, "-m", "mmlaunch", "estimate", str(written), "--cluster", "local")


def test_a_cause_is_one_row(house: Path, tmp_path: Path) -> None:
    insert(house / "mmlaunch" / "restart" / "causes.py", '    Cause(\n        "node",\n', CAUSE)
    logs = tmp_path / "1" / "logs"
    logs.mkdir(parents=True)
    (logs / "rank-0.out").write_text("it was the coffee machine\n")
    code = (
        "import sys; from pathlib import Path; from mmlaunch.restart import causes, policy\n"
        "from mmlaunch.run.paths import AttemptPaths; from mmlaunch.recipe.resources import Restarts\n"
        "ending = policy.classify(1, AttemptPaths(Path(sys.argv[1])), [])\n"
        "verdict = policy.decide(ending, [], Restarts())\n"
        "print(ending.cause, verdict.again, verdict.reason, causes.named(ending.cause).why, sep='|')"
    )
    assert run(house, "-c", code, str(tmp_path / "1")).strip() == (
        "coffee|False|it would fail again: the keyboard is wet|Somebody spilt coffee"
    )


def test_a_task_is_one_file_and_its_section(house: Path, tmp_path: Path) -> None:
    objective = house / "mmlaunch" / "recipe" / "objective.py"
    insert(objective, "def objective_method(", SECTION)
    insert(objective, '"predict": Predict,', '"count": Count, ')
    (house / "mmjobs" / "tasks" / "count.py").write_text(TASK)
    root = tmp_path / "run"
    (root / "attempts" / "1").mkdir(parents=True)
    code = (
        "import sys; from pathlib import Path; from mmlaunch.recipe import resolved; from mmjobs.main import run\n"
        "from mmlaunch.recipe.check import recipe_of; import yaml\n"
        "recipe = recipe_of(yaml.safe_load(Path(sys.argv[1]).read_text()))\n"
        "Path(sys.argv[2], 'recipe.resolved.yaml').write_text(resolved.text_of(recipe))\n"
        "print(run(sys.argv[2]))"
    )
    recipe = RECIPE.replace("projector: twice", "projector: mlp")
    written = tmp_path / "count.yaml"
    written.write_text(recipe.format(rows="{format: shapes, limit: 30}", objective="count"))
    assert run(house, "-c", code, str(written), str(root)).strip() == "{'rows': 30}"


def test_a_command_is_one_file(house: Path) -> None:
    (house / "mmlaunch" / "cli" / "greet.py").write_text(COMMAND)
    assert run(house, "-m", "mmlaunch", "greet").strip() == "hello from outside"
    assert "greet" in run(house, "-m", "mmlaunch", "--help")
