"""`resources.after`: the jobs that have to end before a run may begin."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

from mmlaunch.errors import MmlaunchError, Problem, RunNotFound
from mmlaunch.load import rundir
from mmlaunch.load.find_run import resolve_any
from mmlaunch.monitor import status
from mmlaunch.monitor.state import FINAL
from mmlaunch.recipe.resources import Resources
from mmlaunch.run import ledger, pipeline
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose
from mmlaunch.schedulers.base import Dependency, JobState, Scheduler

_JOB = re.compile(r"[0-9]+(_[0-9]+)?")
WHERE = ("resources", "after")


def dependencies(resources: Resources, scheduler: Scheduler, own: RunPaths) -> list[Dependency]:
    """The jobs that the run `own` has to wait for. One that has ended already is none of them."""
    if resources.after is None:
        return []
    if _JOB.fullmatch(resources.after):
        over = scheduler.look([{"job": resources.after}])[0].state == JobState.OVER
        return [] if over else [Dependency(resources.after, "end")]
    runs = [run for run in _runs(resources.after) if run.root != own.root]
    return [Dependency(job, "end") for run in runs for job in _jobs(run, scheduler)]


def problems(resources: Resources, scheduler: Scheduler, own: RunPaths) -> list[Problem]:
    """Why a run cannot wait for what `resources.after` names."""
    try:
        dependencies(resources, scheduler, own)
    except MmlaunchError as error:
        what, _, right = str(error).partition("; ")
        return [Problem(WHERE, what, right or "name another run, or remove it")]
    return []


def _runs(name: str) -> list[RunPaths]:
    """The run of this name, or the newest run of a recipe of this name; of a pipeline, all its stages."""
    try:
        run = resolve_any(name)
    except RunNotFound:
        runs = rundir.all_runs(rundir.runs_folder(), pipelines=True, part=name)
        newest = next((run for run in runs if run.name.rpartition("-")[0].rpartition("-")[0] == name), None)
        if newest is None:
            raise
        run = newest
    if not pipeline.is_pipeline(run):
        return [run]
    return [stage.paths for stage in pipeline.read(run).stages if not stage.reused and stage.paths.resolved.is_file()]


def _jobs(run: RunPaths, scheduler: Scheduler) -> Iterator[str]:
    """The jobs of a run that have not ended."""
    if status.of(run).state in FINAL:
        return
    events = ledger.skim(run.events).of_this_submission
    records = _records(events)
    if not records:
        return
    if (other := choose.of_run(events)).name != scheduler.name:
        what = f"{run.name} runs by another scheduler ({other.name}), and no job of this one can wait for it"
        raise MmlaunchError(f"{what}; submit this run once that one has ended")
    for record, job in zip(records, scheduler.look(records), strict=True):
        if job.state != JobState.OVER:
            yield str(record["job"])


def _records(events: ledger.Events) -> list[ledger.Event]:
    """What the ledger keeps of the jobs: of a task all its arrays, otherwise the newest one."""
    with suppress(KeyError):
        arrays = [event for event in events.all("queued") if event.get("tasks")]
        newest = status.job_record(events)
        return arrays or ([newest] if newest is not None and newest["job"] else [])
    return []
