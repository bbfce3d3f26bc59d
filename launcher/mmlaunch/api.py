"""mmlaunch from Python: load a recipe, run it, read its events. Errors are those of `mmlaunch.errors`."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmlaunch.errors import MmlaunchError, UserError
from mmlaunch.load import Loaded, find_run, load_recipe, rundir
from mmlaunch.load.pipeline import load_pipeline
from mmlaunch.load.recipe import is_pipeline
from mmlaunch.monitor import pipeline as pipelines
from mmlaunch.monitor import status, watch
from mmlaunch.monitor.shards import LIVE
from mmlaunch.monitor.state import Status
from mmlaunch.run import ledger, pipeline
from mmlaunch.run.ledger import Event
from mmlaunch.run.paths import RunPaths
from mmlaunch.submit import cancel, resume, resume_pipeline, submission
from mmlaunch.submit.other_version import command_of_snapshot, other_version
from mmlaunch.submit.pipeline import Selection, submit_pipeline

POLL = 1.0
"""Seconds between two looks at a pipeline."""

__all__ = ["Event", "Loaded", "Run", "Status", "find", "load", "runs", "submit"]


def load(path: str | Path, *overrides: str) -> Loaded:
    """A validated recipe, as `mmlaunch validate` sees it: `load("recipes/quickstart.yaml", "optim.lr=1e-3")`.

    Its sections are in `.recipe`; `RecipeError.problems` lists every mistake with its place.
    """
    if not all(isinstance(override, str) for override in overrides):
        raise UserError('load("recipe.yaml", "optim.lr=1e-3", "steps=10"): every override is a string of its own')
    return load_recipe(path, overrides)


def submit(recipe: Loaded | str | Path, cluster: str | None = None) -> Run:
    """Make the run directory, start the job and return at once, as `mmlaunch submit` does. The path of a pipeline
    submits all its stages; what is returned stands for the whole."""
    if not isinstance(recipe, (Loaded, str, Path)):
        raise UserError(f"submit(load(PATH)) or submit(PATH), not submit({type(recipe).__name__})")
    if not isinstance(recipe, Loaded) and is_pipeline(recipe):
        return Run(submit_pipeline(load_pipeline(recipe), cluster, Selection()).run)
    loaded = recipe if isinstance(recipe, Loaded) else load(recipe)
    return Run(submission.submit(loaded, cluster).plan.run)


def find(name: str | Path) -> Run:
    """A run, a pipeline or a sweep by its name, the beginning of it, its directory, or `last`."""
    return Run(find_run.resolve_any(str(name)))


def runs() -> list[Run]:
    """All runs in ./runs or $MMLAUNCH_RUNS, the newest first."""
    return [Run(paths) for paths in rundir.all_runs(rundir.runs_folder())]


@dataclass(frozen=True)
class Run:
    """A run directory. Every method reads it anew."""

    paths: RunPaths

    @property
    def name(self) -> str:
        return self.paths.name

    @property
    def directory(self) -> Path:
        return self.paths.root

    def status(self) -> Status:
        """State, step, rate, loss, newest checkpoint, what happens next; of a pipeline, how many stages are done."""
        if pipeline.is_pipeline(self.paths):
            return pipelines.of(self.paths).whole
        return status.of(self.paths, whole=True)

    @property
    def stages(self) -> dict[str, Run]:
        """The stages of a pipeline, or the points of a sweep, by their names; no other run has any."""
        if not pipeline.is_pipeline(self.paths):
            return {}
        return {stage.name: Run(stage.paths) for stage in pipeline.read(self.paths).stages}

    def events(self, follow: bool = False) -> Iterator[Event]:
        """The events of the ledger, from its beginning. With `follow`: also new ones, until the run has ended."""
        if not follow:
            return iter(ledger.read(self.paths.events))
        return (event for event in watch.events(self.paths) if event is not None)

    def wait(self) -> Status:
        """Wait until the run has ended, over all its attempts. `.state` says how: done, failed, cancelled or lost."""
        if not self.stages:
            for _ in watch.events(self.paths):
                pass
        while self.stages and self.status().state in LIVE:
            time.sleep(POLL)
        return self.status()

    def resume(self, *overrides: str, cluster: str | None = None) -> Run:
        """Continue from the newest checkpoint, as `mmlaunch resume` does."""
        if self.stages:
            resume_pipeline.resume_pipeline(self.paths, overrides, cluster)
            return self
        if version := other_version(self.paths):
            return self._resume_with(version, overrides, cluster)
        return Run(resume.resume(str(self.directory), overrides, cluster).plan.run)

    def _resume_with(self, version: str, overrides: tuple[str, ...], cluster: str | None) -> Run:
        """Resume by the launcher in the run's own snapshot, in a process of its own."""
        arguments = ["resume", str(self.directory), *(word for override in overrides for word in ("-s", override))]
        arguments += ["--cluster", cluster] if cluster is not None else []
        command, environment = command_of_snapshot(self.paths, version, arguments)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MmlaunchError(f"mmlaunch {version}: {done.stderr.strip()}")
        return self

    def cancel(self, now: bool = False) -> str:
        """Stop the run. It saves first, unless `now`. Returns a sentence that says how it ended."""
        return cancel.cancel(self.paths, now)
