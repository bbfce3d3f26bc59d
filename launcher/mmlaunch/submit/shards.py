"""Shards: splits the rows of a task when it is submitted, and submits the shards that have not been finished."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmlaunch.errors import MachineError, Problem, RecipeError
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.compared import Compared
from mmlaunch.recipe.data import Source
from mmlaunch.recipe.inference import Inference
from mmlaunch.run import ledger, owner, shards
from mmlaunch.run.paths import RunPaths
from mmlaunch.run.shards import Definition, InputFile
from mmlaunch.schedulers.base import Array, Dependency, PerhapsSubmitted, Scheduler
from mmlaunch.submit import run_task


class PartlySubmitted(MachineError):
    """Some of the arrays of a task were accepted, and a later one was not."""


def define(recipe: Recipe, later: Collection[str] = (), beside: Path | None = None) -> Definition:
    """Count the rows of all sources, and split them; what is made `later` is counted when the task begins.

    `beside`: the folder of the recipe, where formats of the user's own are found before there is a run.
    """
    task = settings_of(recipe)
    if {task.compared_with, *(source.path for source in recipe.data.inputs)} & {*later}:
        return Definition(0, task.window, task.batch, ((0, 0),) * task.shards, (), open=True)
    inputs, within = _counted(recipe.data.inputs, beside)
    if isinstance(task, Compared):
        _check_metrics(task, [*(one.name for one in inputs), *within])
    other = task.compared_with
    against, _ = _counted([Source(path=other, format="predictions")]) if other is not None else ((), ())
    rows = sum(one.rows for one in inputs)
    return Definition(rows, task.window, task.batch, shards.split(rows, task.shards, task.window), inputs, against)


def close(recipe: Recipe, definition: Definition) -> Definition:
    """Split the rows of a task whose input is there now; shards for which there are no rows have none."""
    counted = define(recipe)
    none = ((counted.rows, counted.rows),) * (len(definition.ranges) - len(counted.ranges))
    return replace(counted, ranges=(*counted.ranges, *none))


def _check_metrics(task: Compared, sources: Sequence[str]) -> None:
    """Refuse a metric of a source that is not there, nor in a file of predictions: no row would use it."""
    mistakes = [(path, error.context or {}) for path, _, error in task.unknown(sources)]
    if mistakes:
        raise RecipeError([Problem(("objective", *path), said["what"], said["right"]) for path, said in mistakes])


def _counted(sources: Sequence[Source], beside: Path | None = None) -> tuple[tuple[InputFile, ...], Sequence[str]]:
    """What is known of each source, and the sources that rows of predictions had before."""
    named = json.dumps([source.model_dump(mode="json", by_alias=True) for source in sources])
    counted = run_task.run("mmjobs.tasks.count_rows", [named], needs=("numpy", "PIL"), beside=beside)
    return tuple(InputFile(**one) for one in counted["inputs"]), counted["within"]


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
    run: RunPaths,
    scheduler: Scheduler,
    attempt: int,
    ranks: int,
    submission: int,
    numbers: Sequence[int],
    at_once: int,
    held: bool = False,
    after: Sequence[Dependency] = (),
) -> None:
    """Submit these shards: each is a task of a job array where the scheduler has them, otherwise one job does all."""
    script = run.attempt(attempt).script
    parts = [shards.shard(run, number) for number in numbers]
    tasks = [[part] for part in parts] if scheduler.has_arrays else [parts]
    shards.write_tasks(run, submission, tasks)
    if held and not scheduler.can_hold:
        return
    if not scheduler.has_arrays:
        job = scheduler.submit(run, script, ranks, submission, after, held=held)
        note_job(run, job, [(number, job) for number in numbers])
        return
    most = scheduler.most_tasks()
    for first in range(0, len(tasks), most):
        part = numbers[first : first + most]
        try:
            array = Array(len(part), at_once, first)
            job = scheduler.submit(run, script, ranks, submission, after, array, held)
        except MachineError as error:
            if not first or isinstance(error, PerhapsSubmitted):
                raise
            raise PartlySubmitted(_give_up(run, numbers[first:], len(tasks), error)) from None
        note_job(run, job, [(number, {"job": f"{job['job']}_{index}"}) for index, number in enumerate(part)])


def _give_up(run: RunPaths, numbers: Sequence[int], total: int, error: MachineError) -> str:
    """Note that these shards are not submitted, and say what came of the others."""
    facts = {"state": "failed", "reason": f"was not submitted: {error}", "exit_code": error.exit_code}
    for number in numbers:
        ledger.append(shards.shard(run, number).events, "ended", **facts)
    what = (
        f"{total - len(numbers)} of {total} shards of {run.name} are submitted, the others were not accepted: {error}"
    )
    return f"{what}; mmlaunch resume {run.name} submits them, once there is room"


def note_job(run: RunPaths, job: dict[str, Any], of_shards: Sequence[tuple[int, dict[str, Any]]]) -> None:
    """Note a job that was accepted, in the ledgers of the task and of the shards that it works on."""
    ledger.append(run.events, "queued", **job)
    for number, own in of_shards:
        ledger.append(shards.shard(run, number).events, "queued", **own)
