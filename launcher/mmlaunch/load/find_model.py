"""Finds the checkpoint or the folder that the name of a trained model means.

A name means what it means on the command line: a run's directory, its name, the beginning or the end of it, `last`. The
newest finished run of a name is taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from mmlaunch.errors import UserError
from mmlaunch.load.rundir import all_runs, runs_folder
from mmlaunch.recipe.scalars import HUB_NAME, STAGE
from mmlaunch.recipe.suggest import closest
from mmlaunch.run import manifest, users
from mmlaunch.run.paths import RunPaths

_STAMP = re.compile(r"-\d{4}-[0-9a-f]{4}$")


class Missing(Exception):
    """Nothing of this name: what is wrong, and what would be right."""

    def __init__(self, what: str, right: str | Callable[[], str]) -> None:
        super().__init__(what)
        self._right = right

    @property
    def right(self) -> str:
        """It is looked for when somebody reads it: among a thousand runs that takes longer than all the rest."""
        return self._right if isinstance(self._right, str) else self._right()


def named(name: str) -> str:
    """The checkpoint or the folder that a name means, or the name itself where only the hub can know it."""
    try:
        return str(find(name) or name)
    except Missing as error:
        raise UserError(f"{error}; {error.right}") from None


def find(name: str) -> Path | None:
    """The folder that a name means, as an absolute path; None for a name of the Hugging Face hub."""
    if name.startswith(STAGE):
        raise Missing(f"{name} names a stage, and this recipe is not one of a pipeline", "name a run")
    path = Path(name).expanduser()
    if path.is_dir():
        run = RunPaths(path.absolute())
        return _newest_checkpoint(run) if run.resolved.is_file() else _weights(path.absolute())
    folder, word = (path.parent, path.name) if os.sep in name else (runs_folder(), name)
    if str(folder) == "runs":  # wherever this user's runs are
        folder = runs_folder()
    runs = list(all_runs(folder, part="" if word == "last" else word)) if folder.is_dir() else []
    if runs and (run_named := _run(word, runs)):
        return _newest_checkpoint(run_named)
    if HUB_NAME.fullmatch(name) and not folder.exists() and folder != runs_folder():
        return None

    def right() -> str:
        runs_there = _folders(folder)
        near = closest(word, [*runs_there, *(_STAMP.sub("", name) for name in runs_there), *_folders(path.parent)])
        if near is None:
            return f"relative paths start at {Path.cwd()}"
        return f"did you mean {path.with_name(near) if os.sep in name else near}?"

    raise Missing(f"no run, checkpoint or model folder {name}", right)


def _run(word: str, runs: list[RunPaths]) -> RunPaths | None:
    """The run that a word means; `runs` are the newest first."""
    if word == "last":
        return runs[0]
    named = [run for run in runs if word in (run.name, _STAMP.sub("", run.name))]
    if named:
        return next((run for run in named if users.is_done(run)), None) or _one(word, _with_weights(named))
    fitting = [run for run in runs if run.name.startswith(word)] or [r for r in runs if r.name.endswith(f"-{word}")]
    return _one(word, _with_weights(fitting)) if fitting else None


def _one(word: str, runs: list[RunPaths]) -> RunPaths:
    if len(runs) == 1:
        return runs[0]
    several = ", ".join(run.name for run in runs[:6])
    raise Missing(f"{word} fits {len(runs)} runs", f"write one of: {several}")


def _with_weights(runs: list[RunPaths]) -> list[RunPaths]:
    """Those that have saved a checkpoint, if any has: a run that failed before makes no name ambiguous."""
    return [run for run in runs if manifest.steps(run.checkpoints)] or runs


def _newest_checkpoint(run: RunPaths) -> Path:
    newest, rejected = manifest.newest(run.checkpoints, contents=False)
    if newest is None:
        why = f" ({rejected[0]})" if rejected else ""
        raise Missing(f"{run.name} has no valid checkpoint yet{why}", f"mmlaunch status {run.name}, or another run")
    return run.checkpoint(newest.step)


def _weights(path: Path) -> Path:
    """A checkpoint or a Hugging Face directory."""
    if (path / manifest.NAME).is_file():
        try:
            manifest.validate(path, contents=False)
        except manifest.InvalidCheckpoint as error:
            raise Missing(f"{path} is no valid checkpoint: {error}", "name another checkpoint, or its run") from None
    elif not (path / "config.json").is_file():
        raise Missing(f"{path} holds neither a run, nor a checkpoint, nor a config.json", "name one of these")
    return path


def _folders(parent: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(parent) if entry.is_dir()]
    except OSError:
        return []
