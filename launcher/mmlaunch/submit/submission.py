"""Submits a prepared run: the last checks, its directory, its job."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mmlaunch.errors import MachineError, Problem
from mmlaunch.load import Loaded, plugins
from mmlaunch.run import ledger, users
from mmlaunch.run.files import explained
from mmlaunch.run.shards import Definition
from mmlaunch.schedulers import choose
from mmlaunch.schedulers.base import PerhapsSubmitted
from mmlaunch.submit import shards, waiting_for
from mmlaunch.submit.create_run import create
from mmlaunch.submit.plan import Plan
from mmlaunch.submit.prepare import Prepared, prepare

_TRIES, _PARQUET = 20, b"PAR1"


def check_here(prepared: Prepared) -> None:
    """The checks that only a submission needs: files, packages and GPUs that are missing."""
    recipe, scheduler = prepared.loaded.recipe, choose.named(prepared.plan.cluster.executor)
    missing = prepared.trained.missing if prepared.trained else ()
    own = plugins.problems(recipe, prepared.plugin_folders)
    problems = [
        *missing,
        *own,
        *_missing_files(prepared),
        *scheduler.missing_here(recipe),
        *waiting_for.problems(recipe.resources, scheduler, prepared.plan.run),
    ]
    if problems:
        raise prepared.loaded.placed(problems)


def submit(loaded: Loaded, cluster_name: str | None) -> Prepared:
    """Make the run directory and start the job. If the job is refused, nothing is left behind."""
    definition: Definition | None = None
    for _ in range(_TRIES):
        prepared = prepare(loaded, cluster_name)
        check_here(prepared)
        if prepared.plan.sharded:
            definition = definition or shards.define(prepared.plan.recipe, beside=prepared.plugin_folders.recipe)
            prepared = replace(prepared, definition=definition)
        try:
            create(prepared)
        except FileExistsError:  # another submission took the name in between: take the next
            continue
        for _, checkpoint in prepared.trained.pinned if prepared.trained else ():
            users.register(prepared.plan.run, checkpoint)
        _start(prepared.plan, len(definition.ranges) if definition else 0)
        return prepared
    raise MachineError(f"{prepared.plan.run.root}: another submission is always faster; try again")


def _start(plan: Plan, parts: int) -> None:
    try:
        launch(plan, 1, submission=1, parts=range(parts))
    except (PerhapsSubmitted, shards.PartlySubmitted):
        raise
    except MachineError:
        shutil.rmtree(plan.run.root, ignore_errors=True)
        raise


def launch(plan: Plan, attempt: int, submission: int, parts: Sequence[int] = (), held: bool = False) -> None:
    """Start the job of an attempt whose script and `submitted` event are written; `parts`: of these shards.

    A `held` job is submitted and waits; where a scheduler cannot hold jobs, it is submitted once it is released.
    """
    run, scheduler = plan.run, choose.named(plan.cluster.executor)
    try:
        after = waiting_for.dependencies(plan.recipe.resources, scheduler, run)
        if plan.sharded:
            at_once = shards.settings_of(plan.recipe).at_once or 0
            shards.launch(run, scheduler, attempt, plan.world, submission, parts, at_once, held, after)
            return
        if held and not scheduler.can_hold:
            return
        job = scheduler.submit(run, run.attempt(attempt).script, plan.world, submission, after, held=held)
    except PerhapsSubmitted as error:
        ledger.append(run.events, "unconfirmed", reason=str(error))
        advice = f"mmlaunch status {run.name} looks again; mmlaunch cancel {run.name} gives it up"
        raise PerhapsSubmitted(f"{run.name} is perhaps submitted: {error}. {advice}") from None
    with explained(f"job {job['job']} was started, but its number could not be written into the ledger"):
        ledger.append(run.events, "queued", **job)


def _torn(path: Path) -> str | None:
    """What tells at a glance that a file of rows is not whole; None if nothing does, and for a folder."""
    with suppress(OSError):  # the job may be able to read it
        if not path.is_file():
            return None
        if not path.stat().st_size:
            return "is empty (0 bytes)"
        if path.suffix == ".parquet":
            with path.open("rb") as file:
                first = file.read(len(_PARQUET))
                file.seek(-min(len(_PARQUET), path.stat().st_size), os.SEEK_END)
                if (first, file.read()) != (_PARQUET, _PARQUET):
                    return "is no whole parquet file: it does not begin and end as one"
    return None


def _missing_files(prepared: Prepared) -> list[Problem]:
    problems, given = [], (None, "none", *prepared.later)
    for group in ("train", "input", "eval"):
        for index, source in enumerate(getattr(prepared.loaded.recipe.data, group)):
            for key in ("path", "images"):
                value = getattr(source, key)
                if value in given:
                    continue
                path = prepared.plan.folder / Path(value).expanduser()
                if not path.exists():
                    right = f"relative paths start at {prepared.plan.folder}"
                    problems.append(Problem(("data", group, index, key), f"no such file or folder: {value}", right))
                elif what := _torn(path):
                    problems.append(Problem(("data", group, index, key), f"{value} {what}", "write or copy it again"))
    against = prepared.loaded.recipe.objective.compared_with
    if against not in given and not (prepared.plan.folder / Path(str(against)).expanduser()).exists():
        right = f"relative paths start at {prepared.plan.folder}"
        problems.append(Problem(("objective", "against"), f"no such file or folder: {against}", right))
    return problems
