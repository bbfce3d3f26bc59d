"""Shards at submission: how rows are split, how tasks are spread over job arrays, what a resumed task may change."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as some
from tests.runs import mmlaunch, submit, until

from mmlaunch.cli.results import show
from mmlaunch.errors import BadInput, MachineError, RecipeError, UserError
from mmlaunch.load import find_run, load_recipe
from mmlaunch.monitor import status
from mmlaunch.run import ledger, manifest, shards
from mmlaunch.run.paths import RunPaths
from mmlaunch.run.shards import Definition, InputFile
from mmlaunch.schedulers.base import Array, Dependency, Scheduler
from mmlaunch.submit.resume_task import resume_task
from mmlaunch.submit.shards import PartlySubmitted, define, fill, launch

RECIPE = """\
name: answers
model: {vision: {random: {width: 32}}, language: {random: {width: 32}}}
data: {input: {format: shapes, limit: 40}}
objective: {method: predict, window: 64, sampling: {temperature: 0, max_new_tokens: 4}}
precision: fp32
resources: {nodes: 1, gpus_per_node: 0, tasks_per_node: 1, time: 10m}
"""


@given(some.integers(1, 5000), some.integers(1, 60), some.integers(1, 300))
def test_rows_are_split_into_whole_windows(rows: int, count: int, window: int) -> None:
    ranges = shards.split(rows, count, window)
    assert [row for first, stop in ranges for row in range(first, stop)] == list(range(rows))
    assert all(first % window == 0 and first < stop for first, stop in ranges)
    assert len(ranges) == min(count, -(-rows // window))
    sizes = [-(-(stop - first) // window) for first, stop in ranges]
    assert max(sizes) - min(sizes) <= 1


@dataclass
class Arrays:
    """A scheduler whose arrays hold three tasks; it takes every job."""

    has_arrays: bool = True
    accepts: int = 100
    submitted: list[Array | None] = field(default_factory=list)

    def most_tasks(self) -> int:
        return 3

    def submit(
        self,
        run: RunPaths,
        script: Path,
        ranks: int,
        submission: int,
        after: Sequence[Dependency] = (),
        array: Array | None = None,
        held: bool = False,
    ) -> dict[str, Any]:
        if len(self.submitted) == self.accepts:
            raise MachineError("sbatch did not take the job: QOSMaxSubmitJobPerUserLimit")
        self.submitted.append(array)
        return {"job": str(100 + len(self.submitted))}


def made(root: Path, count: int) -> RunPaths:
    run = RunPaths(root / "task")
    run.root.mkdir(parents=True)
    ranges = shards.split(16 * count, count, 16)
    inputs = (InputFile("rows", "rows.jsonl", 16 * count, 7, "d"),)
    fill(run, Definition(16 * count, 16, 8, ranges, inputs), {"executor": "slurm", "method": "predict"}, {})
    return run


def test_as_many_arrays_as_the_site_needs(tmp_path: Path) -> None:
    """Eight shards in arrays of three tasks: each job script finds its shard by the tasks before its array."""
    run, scheduler = made(tmp_path, 8), Arrays()
    launch(run, cast(Scheduler, scheduler), 1, 1, 1, range(8), at_once=2)
    assert scheduler.submitted == [Array(3, 2, 0), Array(3, 2, 3), Array(2, 2, 6)]
    lines = shards.tasks_file(run, 1).read_text().splitlines()
    jobs = {str(ledger.read(one.events).all("queued")[0]["job"]): one for one in shards.all_shards(run)}
    for number, array in enumerate(scheduler.submitted):
        assert array is not None
        for index in range(array.tasks):
            assert Path(lines[array.first + index]).name == jobs[f"{101 + number}_{index}"].root.name


def test_an_array_that_is_refused_leaves_the_others_alone(tmp_path: Path) -> None:
    """The second array of three is not accepted: what is queued stays, the rest can be resumed."""
    run = made(tmp_path, 8)
    with pytest.raises(PartlySubmitted, match=r"3 of 8 shards of task are submitted.*QOSMaxSubmit"):
        launch(run, cast(Scheduler, Arrays(accepts=1)), 1, 1, 1, range(8), at_once=0)
    ended = [ledger.read(one.events).last("ended") for one in shards.all_shards(run)]
    assert [end is not None and end["state"] for end in ended] == [False] * 3 + ["failed"] * 5
    with pytest.raises(MachineError):
        launch(made(tmp_path / "other", 2), cast(Scheduler, Arrays(accepts=0)), 1, 1, 1, range(2), at_once=0)


def test_one_job_does_all_where_there_are_no_arrays(tmp_path: Path) -> None:
    run, scheduler = made(tmp_path, 4), Arrays(has_arrays=False)
    launch(run, cast(Scheduler, scheduler), 1, 1, 2, [1, 3], at_once=0)
    assert scheduler.submitted == [None] and shards.tasks_file(run, 2).read_text() == "shards/1 shards/3\n"
    assert [len(ledger.read(one.events).all("queued")) for one in shards.all_shards(run)] == [0, 1, 0, 1]


def test_a_damaged_definition_is_named(tmp_path: Path) -> None:
    run = made(tmp_path, 2)
    assert shards.read(run).rows == 32 and shards.task_of(shards.shard(run, 1)) == run
    assert shards.shard(run, 1).name == "task/1"
    run.definition.chmod(0o644)
    run.definition.write_text('{"rows": 32}')
    with pytest.raises(BadInput, match=r"shards\.json: is no definition of shards"):
        shards.read(run)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("", r"rows\.jsonl is empty \(0 bytes\)"),
        (
            '{"index": 0, "prompt": "Q", "truths": [], "predictions": ["a"]}\n' * 2,
            "row is twice in this file of predictions: 0",
        ),
    ],
)
def test_wrong_input_is_a_mistake_of_the_user(
    tmp_path: Path, own_home: Path, write: Callable[..., Path], rows: str, says: str
) -> None:
    """An empty file, and one of predictions with a row twice: nothing is submitted, and the exit code is 2."""
    (tmp_path / "rows.jsonl").write_text(rows)
    source = f"{{path: {tmp_path / 'rows.jsonl'}, format: predictions}}"
    refused = mmlaunch("submit", write(RECIPE.replace("{format: shapes, limit: 40}", source)))
    assert refused.returncode == 2 and re.search(says, refused.stderr), refused.stderr


def test_damaged_records_are_no_job(tmp_path: Path, own_home: Path, write: Callable[..., Path]) -> None:
    """94 is of a job: `results` ends with 2 where records are not those of its rows, and says which."""
    run = made(own_home / "runs", 1)
    run.resolved.write_text(RECIPE)
    shard = shards.shard(run, 0)
    shards.records(shard).write_text('{"index": 0}\n')
    shards.footer(shard).write_text("{}")
    shown = mmlaunch("results", run.name)
    assert shown.returncode == 2 and "missing: 1, 2, 3" in shown.stderr, shown.stderr


@pytest.mark.parametrize(("failed", "says"), [(1, "1 row failed: 1 x image, "), (2, "2 rows failed: 2 x image, ")])
def test_results_say_how_many_rows_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failed: int, says: str
) -> None:
    run = made(tmp_path, 1)
    run.resolved.write_text(RECIPE)
    run.environment.write_text("{}")
    shard = shards.shard(run, 0)
    error = {"reason": "image", "detail": "gone"}
    records = [{"index": number, "error": error if number < failed else None} for number in range(16)]
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    shards.records(shard).write_bytes(data)
    shards.footer(shard).write_text(json.dumps({"sha256": hashlib.sha256(data).hexdigest()}))
    assert show(run) == 1 and f"\n{says}more than" in capsys.readouterr().out


def test_a_metric_is_of_a_file_or_of_a_source_inside_it(tmp_path: Path, write: Callable[..., Path]) -> None:
    """What the sources inside a file of predictions are called is known when its rows are counted."""
    values = {"prompt": "Q", "images": [], "truths": ["a"], "predictions": ["a"], "finish": ["eos"], "error": None}
    records = [{"index": number, "source": name, **values} for number, name in enumerate(("chartqa", "docvqa"))]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = RECIPE.replace("{format: shapes, limit: 40}", f"{{path: {tmp_path}/said.jsonl, format: predictions}}")
    recipe = write(text.replace("method: predict", "method: evaluate, metric: {NAME: relaxed, all: exact}"))

    def defined(name: str) -> Definition:
        return define(load_recipe(write(recipe.read_text().replace("NAME", name), f"{name}.yaml")).recipe)

    assert defined("chartqa").rows == defined("said").rows == 2
    with pytest.raises(RecipeError, match=r"metric.chartqb: no source is called chartqb; did you mean chartqa\?"):
        defined("chartqb")


@pytest.mark.nightly  # half a minute each
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_task_on_this_machine(tmp_path: Path, own_home: Path, write: Callable[..., Path], damage: str) -> None:
    """From the recipe to one file; names of shards; what cannot be changed; nothing left to resume."""
    run = submit(write(RECIPE))
    assert mmlaunch("results", run.name).returncode != 0
    until(lambda: status.of(run).state == "done", seconds=120)
    assert find_run.resolve(f"{run.name}/0").root == shards.shard(run, 0).root
    refused = mmlaunch("resume", run.name, "-s", "objective.sampling.max_new_tokens=8")
    assert refused.returncode == 2 and "were written at submission" in refused.stderr
    with pytest.raises(UserError, match="is done: 1 shard: 1 done"):
        resume_task(run, [], None)
    for command in ("resume", "cancel", "results"):
        of_shard = mmlaunch(command, f"{run.name}/0")
        assert of_shard.returncode == 2 and f"mmlaunch {command} {run.name}" in of_shard.stderr
    shown = mmlaunch("results", run.name)
    assert shown.returncode == 0 and "predictions.jsonl: 40 records" in shown.stdout
    whole, damaged = shown.stdout, shards.records(shards.shard(run, 0))
    predictions = shards.output(run, "predictions.jsonl").read_bytes()
    if damage == "cut":
        damaged.write_bytes(damaged.read_bytes()[:-9])
    else:
        shutil.rmtree(damaged.parent)
    assert mmlaunch("results", run.name).returncode != 0
    resume_task(run, [], None)
    until(lambda: status.of(run).state == "done", seconds=120)
    assert mmlaunch("results", run.name).stdout == whole
    assert shards.output(run, "predictions.jsonl").read_bytes() == predictions
    assert f"{run.name}/0" in set(mmlaunch("logs", run.name).stdout.splitlines())
    assert mmlaunch("export", run.name).returncode == 2 and mmlaunch("report", run.name).returncode == 2


def test_the_model_of_the_run_that_a_task_starts_from(
    tmp_path: Path, own_home: Path, write: Callable[..., Path]
) -> None:
    """`init_from` alone: the parts come from that run; a folder of transformers is read as it is."""
    run = RunPaths(own_home / "runs" / "sft-1128-aaaa")
    run.root.mkdir(parents=True)
    run.resolved.write_text("name: sft\nmodel: {vision: {random: {width: 48}}, language: {random: {width: 48}}}\n")
    run.checkpoints.mkdir()
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    short = RECIPE.replace(RECIPE.splitlines()[1], "model: {init_from: FROM}")
    with pytest.raises(UserError, match="sft-1128-aaaa has no valid checkpoint yet"):
        load_recipe(write(short.replace("FROM", "sft")))
    with pytest.raises(UserError, match=r"model\.init_from: no run, checkpoint or model folder runs/nothere"):
        load_recipe(write(short.replace("FROM", "runs/nothere")))
    aside = manifest.staging(run.checkpoints, 5)
    aside.mkdir(exist_ok=True)
    manifest.seal(aside, run.checkpoint(5), 5, 1)
    model = load_recipe(write(short.replace("FROM", "sft"))).recipe.model
    assert model.language is not None and model.language.random is not None and model.language.random.width == 48
    assert model.init_from == "sft"
    exported = load_recipe(write(short.replace("FROM", str(folder)))).recipe.model
    assert exported.pretrained == str(folder) and exported.init_from is None
