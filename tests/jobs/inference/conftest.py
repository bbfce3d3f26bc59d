"""Tasks of one or more shards, worked on by real ranks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.jobs.conftest import Job, tiny_recipe

from mmjobs.inference.inputs import measured
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.recipe.data import Source
from mmlaunch.recipe.inference import Inference
from mmlaunch.results.merge import Merged, merge
from mmlaunch.run import shards
from mmlaunch.run.paths import RunPaths
from mmlaunch.run.shards import Definition


@dataclass
class Task:
    """A task, as a submission has made it."""

    run: RunPaths
    recipe: Recipe
    jobs: list[Job] = field(default_factory=list)

    def work(self, world: int = 1) -> Task:
        """One attempt at each shard; all must end well."""
        for job in self.jobs:
            assert job.run(self.recipe, world) == [0] * world, job.log()
        return self

    def merge(self) -> Merged:
        return merge(self.run)

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.merge().output.read_text().splitlines()]

    def made(self) -> list[dict[str, Any]]:
        merged = self.merge()
        assert merged.made is not None
        return [json.loads(line) for line in merged.made.read_text().splitlines()]


@pytest.fixture
def task(tmp_path: Path, tiny: Callable[..., Recipe]) -> Iterator[Callable[..., Task]]:
    """Make tasks; `objective` and `input` as a recipe writes them."""
    made: list[Task] = []

    def _task(objective: dict[str, Any], source: Any, **changes: Any) -> Task:
        recipe = tiny(objective=objective, data__input=source, data__train=[], data__eval=[], **changes)
        settings = recipe.objective
        assert isinstance(settings, Inference)
        run = RunPaths(tmp_path / f"task-{len(made)}")
        shutil.rmtree(run.root, ignore_errors=True)
        run.root.mkdir()
        inputs = tuple(measured(recipe.data.inputs))
        rows = sum(one.rows for one in inputs)
        ranges = shards.split(rows, settings.shards, settings.window)
        other = settings.compared_with
        against = tuple(measured([Source(path=other, format="predictions")])) if other else ()
        shards.write(run, Definition(rows, settings.window, settings.batch, ranges, inputs, against))
        run.resolved.write_text(resolved.text_of(recipe))
        run.environment.write_text("{}")
        made.append(Task(run, recipe))
        for number in range(len(ranges)):
            shard = shards.shard(run, number)
            shard.root.mkdir(parents=True)
            made[-1].jobs.append(Job(shard))
        return made[-1]

    yield _task
    for one in made:
        for job in one.jobs:
            job.kill()


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Write a file of rows; an `image` that is a colour is drawn first. Returns the source."""

    def _rows(values: list[dict[str, Any]], name: str = "rows", **source: Any) -> dict[str, Any]:
        for value in values:
            colour = value.get("image")
            if isinstance(colour, str) and not (tmp_path / f"{colour}.png").exists() and "." not in colour:
                Image.new("RGB", (20, 20), colour).save(tmp_path / f"{colour}.png")
            if isinstance(colour, str) and "." not in colour:
                value["image"] = f"{colour}.png"
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
        return {"path": str(tmp_path / f"{name}.jsonl"), **source}

    return _rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers: the three colours, shapes and places are still guesses, but words."""
    run = Job(RunPaths(tmp_path_factory.mktemp("sft")))
    recipe = tiny_recipe(steps=60, data__train={"format": "shapes", "limit": 400}, optim={"lr": 1e-2})
    assert run.run(recipe) == [0], run.log()
    return run.paths.root
