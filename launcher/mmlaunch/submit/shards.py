"""Shards: splits the rows of a task when it is submitted, and submits the shards that have not been finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mmlaunch.recipe import Recipe
from mmlaunch.recipe.inference import Inference
from mmlaunch.run import ledger, owner, shards
from mmlaunch.run.paths import RunPaths
from mmlaunch.run.shards import Definition, InputFile
from mmlaunch.schedulers.base import Array, Scheduler
from mmlaunch.submit import run_task


def define(recipe: Recipe) -> Definition:
    """Count the rows of all sources, and split them."""
    task = settings_of(recipe)
    sources = [source.model_dump(mode="json", by_alias=True) for source in recipe.data.inputs]
    counted = run_task.run("mmjobs.tasks.count_rows", [json.dumps(sources)], needs=("numpy", "PIL"))["inputs"]
    inputs = tuple(InputFile(**one) for one in counted)
    rows = sum(one.rows for one in inputs)
    return Definition(rows, task.window, task.batch, shards.split(rows, task.shards, task.window), inputs)


def settings_of(recipe: Recipe) -> Inference:
    """The objective of a recipe whose rows are split into shards."""
    assert isinstance(recipe.objective, Inference)
    return recipe.objective


def fill(run: RunPaths, definition: Definition, facts: dict[str, Any], submitter: dict[str, Any]) -> None:
    """Write the definition of a new task, and its shards."""
    shards.write(run, definition)
    for number in range(len(definition.ranges)):
        one = shards.make(run, number)
        owner.take(one, 1, **submitter)
        first, stop = definition.ranges[number]
        ledger.append(one.events, "submitted", **facts, submission=1, rows=stop - first)


def launch(
    run: RunPaths, scheduler: Scheduler, attempt: int, ranks: int, submission: int, numbers: Sequence[int], at_once: int
) -> None:
    """Submit these shards: each is a task of a job array where the scheduler has them, otherwise one job does all."""
    script = run.attempt(attempt).script
    tasks = [[number] for number in numbers] if scheduler.has_arrays else [list(numbers)]
    shards.write_tasks(run, submission, tasks)
    if not scheduler.has_arrays:
        job = scheduler.submit(run, script, ranks, submission)
        _note_job(run, job, [(number, job) for number in numbers])
        return
    most = scheduler.most_tasks()
    for first in range(0, len(tasks), most):
        part = numbers[first : first + most]
        job = scheduler.submit(run, script, ranks, submission, array=Array(len(part), at_once, first))
        _note_job(run, job, [(number, {"job": f"{job['job']}_{index}"}) for index, number in enumerate(part)])


def _note_job(run: RunPaths, job: dict[str, Any], of_shards: Sequence[tuple[int, dict[str, Any]]]) -> None:
    ledger.append(run.events, "queued", **job)
    for number, own in of_shards:
        ledger.append(shards.shard(run, number).events, "queued", **own)
