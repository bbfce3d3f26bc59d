"""Finds the run, pipeline, stage or shard that a name on the command line means."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from mmlaunch.errors import RunNotFound, UserError
from mmlaunch.load.rundir import all_runs, runs_folder
from mmlaunch.recipe.suggest import closest
from mmlaunch.run import pipeline, shards
from mmlaunch.run.paths import RunPaths


def resolve(name: str) -> RunPaths:
    """The run that a user means: a directory, a name, its beginning or its last part, or `last`. A stage of a pipeline
    may be named `rlhf-1128-6b53/ppo`."""
    run = resolve_any(name)
    if pipeline.is_pipeline(run):
        stages = ", ".join(stage.name for stage in pipeline.read(run).stages[:6])
        raise RunNotFound(f"{run.name} is a pipeline; name one of its stages ({stages}): {run.name}/STAGE")
    return run


def resolve_any(name: str) -> RunPaths:
    """The same, where a pipeline or a sweep may be meant too."""
    folder = runs_folder()
    whole, slash, part = name.rpartition("/")
    if slash and whole and not _exists(RunPaths(Path(name).expanduser())):
        run: RunPaths | None = None
        with suppress(RunNotFound):
            run = resolve_any(whole)
        if run is not None and pipeline.is_pipeline(run):
            return _stage(run, part)
        if run is not None and part.isdecimal() and shards.is_task(run):
            return _shard(run, int(part))
    if os.sep in name or name in (".", ".."):
        path = Path(name).expanduser().absolute()
        if _exists(RunPaths(path)):
            return RunPaths(path)
        beside = [run.name for run in all_runs(path.parent)] if path.parent.is_dir() else []
        there = f"; the newest there are {', '.join(beside[:4])}" if beside else "; mmlaunch status lists yours"
        raise RunNotFound(f"{name} is not a run directory{there}")
    runs = list(all_runs(folder, pipelines=True))
    if name == "last" and runs:
        return next((run for run in runs if not run.stage.is_file()), runs[0])
    exact = [run for run in runs if run.name == name]
    begun = [run for run in runs if name and run.name.startswith(name)]
    fitting = exact or begun or [run for run in runs if name and run.name.endswith(f"-{name}")]
    if len(fitting) == 1:
        return fitting[0]
    if one := _only_pipeline(fitting):
        return one
    if fitting:
        raise RunNotFound(
            f"{name!r} fits {len(fitting)} runs; write more of the name: {', '.join(run.name for run in fitting[:6])}"
        )
    known = f"the newest are {', '.join(run.name for run in runs[:4])}" if runs else "it has no runs yet"
    raise RunNotFound(f"no run {name!r} in {folder}; {known}")


def resolve_whole(name: str, doing: str, pipelines: bool = False) -> RunPaths:
    """The same for what is done to a task as a whole, and not to one of its shards."""
    run = resolve_any(name) if pipelines else resolve(name)
    if (task := shards.task_of(run)) is not None:
        raise UserError(f"{run.name} is a shard of a task; type mmlaunch {doing} {task.name}")
    return run


def _exists(run: RunPaths) -> bool:
    return run.resolved.exists() or pipeline.is_pipeline(run)


def _only_pipeline(fitting: list[RunPaths]) -> RunPaths | None:
    """The pipeline among runs that are its stages otherwise."""
    whole = [run for run in fitting if pipeline.is_pipeline(run)]
    if len(whole) != 1:
        return None
    stages = {stage.run for stage in pipeline.read(whole[0]).stages}
    return whole[0] if all(str(run.root) in stages for run in fitting if run != whole[0]) else None


def _stage(run: RunPaths, name: str) -> RunPaths:
    definition = pipeline.read(run)
    stage = definition.named(name)
    if stage is None:
        near = closest(name, [one.name for one in definition.stages])
        right = f"did you mean {near}?" if near else f"it has {', '.join(one.name for one in definition.stages[:12])}"
        raise UserError(f"{run.name} has no stage {name}; {right}")
    if not stage.paths.resolved.exists():
        raise UserError(f"{run.name}/{name} is gone: {stage.run} does not exist any more")
    return stage.paths


def _shard(run: RunPaths, number: int) -> RunPaths:
    count = len(shards.read(run).ranges)
    if number >= count:
        raise RunNotFound(f"{run.name} has no shard {number}; it has 0 to {count - 1}")
    return shards.shard(run, number)
