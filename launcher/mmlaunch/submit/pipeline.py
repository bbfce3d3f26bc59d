"""Submits a pipeline: all stages are checked and made, all are submitted held, and only then the first ones begin.

The end of a stage releases those that need it (`submit/stages.py`): no process has to live on a login node. A stage of
the same content that is done already is used again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmlaunch import __version__
from mmlaunch.errors import MachineError, MmlaunchError, Problem, RecipeError, UserError
from mmlaunch.load import plugins, rundir
from mmlaunch.load.pipeline import LoadedPipeline, LoadedStage
from mmlaunch.load.trained import with_value
from mmlaunch.monitor import status
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.suggest import closest
from mmlaunch.run import ledger, pipeline, users
from mmlaunch.run import shards as run_shards
from mmlaunch.run.files import explained, publish
from mmlaunch.run.paths import CheckpointPaths, RunPaths
from mmlaunch.run.pipeline import Definition, Kind, Membership, Need, Stage
from mmlaunch.schedulers import choose
from mmlaunch.schedulers.base import Array
from mmlaunch.submit import secrets, shards, snapshot, stages, submission, waiting_for
from mmlaunch.submit.create_run import EXECUTABLE, create, take
from mmlaunch.submit.prepare import Prepared, prepare
from mmlaunch.submit.render import Renderer

_TRIES = 20
NOT_CONTENT = ("name", "resources", "restarts", "env", "log")
"""The sections of a recipe that change nothing of what a stage makes."""


@dataclass(frozen=True)
class Selection:
    """The stages that a user wants to run; the others have to be done already."""

    first: str | None = None
    """This one and those that need it."""
    last: str | None = None
    """This one and those that it needs."""
    only: str | None = None


@dataclass(frozen=True)
class PreparedStage:
    """A stage that is about to be submitted, or one that is done and used again."""

    name: str
    needs: tuple[str, ...]
    run: RunPaths
    key: str
    recipe: Recipe
    prepared: Prepared | None
    """None: a finished run of the same content is used."""
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreparedPipeline:
    """Everything that the submission of a pipeline writes."""

    run: RunPaths
    loaded: LoadedPipeline
    cluster_name: str
    stages: tuple[PreparedStage, ...]
    kind: Kind = "pipeline"
    at_once: int | None = None
    """Of a sweep: so many points run at the same time at most."""
    rungs: tuple[int, ...] = ()
    keep: int = 1

    @property
    def new(self) -> list[tuple[PreparedStage, Prepared]]:
        """The stages that will run."""
        return [(stage, stage.prepared) for stage in self.stages if stage.prepared is not None]

    @property
    def is_array(self) -> bool:
        """Whether all that is new is one job array."""
        return self.kind == "sweep" and choose.named(self.new[0][1].plan.cluster.executor).has_arrays

    @property
    def definition(self) -> Definition:
        return Definition(
            self.kind,
            tuple(
                Stage(one.name, str(one.run.root), one.needs, one.prepared is None, one.values) for one in self.stages
            ),
            self.rungs,
            self.keep,
        )


def prepare_pipeline(loaded: LoadedPipeline, cluster_name: str | None, selection: Selection) -> PreparedPipeline:
    """Plan and render all stages without writing anything; raises `RecipeError` with the problems of all of them."""
    wanted, again = _selected(loaded, selection)
    folder = rundir.runs_folder()
    name, _ = choose.profile(cluster_name)
    prepared: dict[str, PreparedStage] = {}
    problems, finished = list[Problem](), Finished(folder)
    for stage in loaded.stages:
        if not set(stage.needs) <= prepared.keys():  # what it needs has mistakes
            continue
        try:
            reuse = finished if stage.name not in again else None
            prepared[stage.name] = _stage(stage, prepared, cluster_name, reuse)
        except RecipeError as error:
            problems += [replace(one, path=("stages", stage.name, *one.path)) for one in error.problems]
    if problems:
        raise RecipeError(problems)
    kept = _needed(prepared, wanted)
    content = "\0".join([name, str(Path.cwd()), *(prepared[stage].key for stage in kept)])
    run = RunPaths(folder / rundir.free_name(loaded.name, content, folder))
    return PreparedPipeline(run, loaded, name, tuple(prepared[stage] for stage in kept))


def _selected(loaded: LoadedPipeline, selection: Selection) -> tuple[set[str], set[str]]:
    """The stages that are wanted, and those of them that run even if they are done."""
    names = [stage.name for stage in loaded.stages]
    for name in (selection.first, selection.last, selection.only):
        if name is not None and name not in names:
            near = closest(name, names)
            right = f"did you mean {near}?" if near else f"the stages are {', '.join(names)}"
            raise UserError(f"no stage {name}; {right}")
    needs = {stage.name: stage.needs for stage in loaded.stages}
    if selection.only is not None:
        return {selection.only}, {selection.only}
    wanted = set(names)
    if selection.first is not None:
        wanted = {name for name in names if selection.first in (name, *_behind(name, needs))}
    if selection.last is not None:
        wanted &= {selection.last, *_behind(selection.last, needs)}
    if not wanted:
        raise UserError(f"--until {selection.last} ends before --from {selection.first} begins")
    return wanted, {selection.first} if selection.first else set()


def _behind(name: str, needs: Mapping[str, Sequence[str]]) -> set[str]:
    """All stages that have to be done before this one."""
    behind: set[str] = set()
    for need in needs[name]:
        behind |= {need, *_behind(need, needs)}
    return behind


def _needed(prepared: Mapping[str, PreparedStage], wanted: Collection[str]) -> list[str]:
    """The wanted stages, and the finished ones that they need."""
    missing = [
        need
        for name in wanted
        for need in prepared[name].needs
        if need not in wanted and prepared[need].prepared is not None
    ]
    if missing:
        what = f"stage {missing[0]} has no finished run of the same content, and is left out"
        raise UserError(f"{what}; without --from, --until and --only all stages run that are not done")
    needed = {need for name in wanted for need in prepared[name].needs} | set(wanted)
    return [name for name in prepared if name in needed]


def _stage(
    stage: LoadedStage, before: Mapping[str, PreparedStage], cluster_name: str | None, finished: Finished | None
) -> PreparedStage:
    recipe, by_content, later = stage.loaded.recipe, stage.loaded.recipe, list[str]()
    for reference in stage.references:
        source = before[reference.stage]
        made = source.run.root / reference.file if reference.file else source.run.root
        recipe = with_value(recipe, reference.place, str(made))
        by_content = with_value(by_content, reference.place, f"{source.key}/{reference.file}")
        later.append(str(made))
    prepared = prepare(replace(stage.loaded, recipe=recipe), cluster_name, tuple(later))
    key = key_of(prepared, by_content, later)
    if finished and not any(before[need].prepared for need in stage.needs) and (done := finished.find(key)):
        return PreparedStage(stage.name, stage.needs, done, key, recipe, None)
    return PreparedStage(stage.name, stage.needs, prepared.plan.run, key, prepared.plan.recipe, prepared)


def key_of(prepared: Prepared, by_content: Recipe, later: Collection[str]) -> str:
    """The same for stages that make the same: of the recipe, the data, the models that it starts from, the version."""
    recipe = prepared.plan.recipe
    content: dict[str, Any] = by_content.model_dump(
        mode="json", by_alias=True, exclude=set(NOT_CONTENT), exclude_defaults=True
    )
    content["version"] = __version__
    own = plugins.files(recipe, prepared.plugin_folders)
    content["plugins"] = {name: hashlib.sha256(text).hexdigest() for name, text in own.items()}
    installed = plugins.origins(recipe, prepared.plugin_folders)
    content["packages"] = {name: one["version"] for name, one in installed.items() if "version" in one}
    for field, checkpoint in prepared.trained.pinned if prepared.trained else ():
        manifest = CheckpointPaths(checkpoint).manifest
        content[f"of {field}"] = manifest.read_text(errors="replace") if manifest.is_file() else str(checkpoint)
    sources = [*recipe.data.train, *recipe.data.input, *recipe.data.eval]
    names = [source.path for source in sources if source.path is not None and source.path not in later]
    content["files"] = [_looks(prepared.plan.folder / Path(name).expanduser()) for name in sorted(set(names))]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _looks(path: Path) -> list[tuple[str, int, int]]:
    """The files there, each with its size and the time of its last change."""
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    return [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in files if one.exists()]


class Finished:
    """The stages of a folder that are done, by their keys."""

    def __init__(self, folder: Path) -> None:
        self._runs: dict[str, list[RunPaths]] = {}
        for run in rundir.all_runs(folder):  # the newest first
            with suppress(MmlaunchError):
                if (member := pipeline.membership(run)) is not None:
                    self._runs.setdefault(member.key, []).append(run)

    def find(self, key: str) -> RunPaths | None:
        """The newest one with this key."""
        return next((run for run in self._runs.get(key, ()) if status.of(run).state == "done"), None)


def submit_pipeline(loaded: LoadedPipeline, cluster_name: str | None, selection: Selection) -> PreparedPipeline:
    """Make all run directories, submit all jobs, and let the first stages begin; or leave nothing behind."""
    for _ in range(_TRIES):
        prepared = prepare_pipeline(loaded, cluster_name, selection)
        try:
            if prepared.new:
                submit_prepared(prepared)
        except FileExistsError:  # another submission took a name in between: take the next
            continue
        return prepared
    raise MachineError(f"{rundir.runs_folder()}: another submission is always faster; try again")


def submit_prepared(whole: PreparedPipeline) -> None:
    """The same for a pipeline that is prepared."""
    _check(whole)
    made: list[RunPaths] = []
    facts = whole.new[0][1].plan.facts | {"name": whole.loaded.name, "method": whole.kind, "steps": None}
    try:
        new = _make(whole, made)
        if whole.is_array:
            ledger.append(whole.run.events, "submitted", **facts)  # its points begin as soon as they are accepted
            _launch_array(whole, new)
        else:
            for prepared in new:
                parts = range(len(prepared.definition.ranges)) if prepared.definition else ()
                submission.launch(prepared.plan, 1, submission=1, parts=parts, held=True)
            ledger.append(whole.run.events, "submitted", **facts)
    except BaseException:
        _undo(made)
        raise
    stages.release(whole.run)


def _launch_array(whole: PreparedPipeline, new: Sequence[Prepared]) -> None:
    """Submit the points of a sweep: each is a task of a job array, or of several where one would be too large."""
    run, runs = whole.run, [prepared.plan.run for prepared in new]
    scheduler, world = choose.named(new[0].plan.cluster.executor), new[0].plan.world
    run_shards.write_tasks(run, 1, [[one] for one in runs])
    after = waiting_for.dependencies(new[0].plan.recipe.resources, scheduler, run)
    most = scheduler.most_tasks()
    for first in range(0, len(runs), most):
        part = runs[first : first + most]
        array = Array(len(part), whole.at_once or 0, first)
        job = scheduler.submit(run, run.attempt(1).script, world, 1, after, array)
        ledger.append(run.events, "queued", **job)
        for index, one in enumerate(part):
            ledger.append(one.events, "queued", job=f"{job['job']}_{index}")


def _check(whole: PreparedPipeline) -> None:
    """The checks of a submission, for all stages together."""
    problems: list[Problem] = []
    for stage, prepared in whole.new:
        try:
            submission.check_here(prepared)
            secrets.values(prepared.plan.passed)
        except RecipeError as error:
            problems += [replace(one, path=("stages", stage.name, *one.path)) for one in error.problems]
    if problems:
        raise RecipeError(problems)


def _make(whole: PreparedPipeline, made: list[RunPaths]) -> list[Prepared]:
    """Make the directory of the pipeline and those of its new stages, which are returned; `made` is filled."""
    aside = whole.run.root.with_name(f".{whole.run.name}.{os.getpid()}")
    values = secrets.suspected()
    with explained("cannot create the directory of the pipeline", but=FileExistsError):
        try:
            aside.mkdir(parents=True)
            publish(aside / whole.run.recipe.name, secrets.redact(_text(whole.loaded), values))
            pipeline.write(RunPaths(aside), whole.definition)
            publish(aside / whole.run.lock.name, "")
            if whole.kind == "sweep":
                _fill_sweep(whole, RunPaths(aside))
            aside.chmod(0o755)
            take(aside, whole.run.root)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    made.append(whole.run)
    digests: dict[str, str] = {}
    new: list[Prepared] = []
    for stage in whole.stages:
        if stage.prepared is None:
            digests[stage.name] = stages.digest(stage.run)
            continue
        shares = whole.run if whole.kind == "sweep" else None
        member = _membership(whole, stage, digests)
        prepared = replace(stage.prepared, stage=member, held=not whole.is_array, shares=shares)
        if prepared.plan.sharded:
            beside = prepared.plugin_folders.recipe
            prepared = replace(prepared, definition=shards.define(prepared.plan.recipe, prepared.later, beside))
        create(prepared)
        new.append(prepared)
        made.append(stage.run)
        digests[stage.name] = stages.digest(stage.run)
        for _, checkpoint in prepared.trained.pinned if prepared.trained else ():
            users.register(stage.run, checkpoint)
    return new


def _fill_sweep(whole: PreparedPipeline, run: RunPaths) -> None:
    """What all points share: the code, the job folder, and the script of the job array."""
    _, first = whole.new[0]
    plan, attempt = replace(first.plan, run=whole.run, sharded=True), run.attempt(1)
    attempt.root.mkdir(parents=True)
    run.job.mkdir()
    snapshot.snapshot(run.code)
    publish(attempt.script, Renderer(first.beside).script(plan), EXECUTABLE)
    publish(attempt.deepspeed, first.texts.deepspeed)


def _membership(whole: PreparedPipeline, stage: PreparedStage, digests: Mapping[str, str]) -> Membership:
    runs = {other.name: other.run for other in whole.stages}
    loaded = next(one for one in whole.loaded.stages if one.name == stage.name)
    needs = {name: Need(str(runs[name].root), digests[name]) for name in stage.needs}
    return Membership(str(whole.run.root), stage.name, stage.key, needs, loaded.references)


def _text(loaded: LoadedPipeline) -> str:
    """The file as it was written, with its overrides noted on top."""
    written = loaded.path.read_text(encoding="utf-8-sig")
    return "".join(f"# -s {' '.join(override.splitlines())}\n" for override in loaded.overrides) + written


def _undo(made: Sequence[RunPaths]) -> None:
    """Take back what was submitted, and remove what was made: none of it has begun."""
    for run in reversed(made):
        events = ledger.skim(run.events)
        for record in events.all("queued"):
            try:
                choose.of_run(events).cancel(record)
            except MmlaunchError:  # a held job of a run that is gone ends as soon as it begins
                continue
        shutil.rmtree(run.root, ignore_errors=True)
