"""Trained models that a recipe names: `init_from: runs/sft-llama3-8b` becomes one checkpoint before anything is queued.

A name means what it means on the command line: a run's directory, its name, the beginning or the end of it, `last`. The
newest finished run of a name is taken. Later attempts start from the same checkpoint, whatever its run does meanwhile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from mmlaunch.errors import Problem, UserError
from mmlaunch.load import reward_models, rundir
from mmlaunch.load.recipe import Loaded
from mmlaunch.recipe.reward_functions import FUNCTIONS
from mmlaunch.recipe.scalars import HUB_NAME
from mmlaunch.recipe.section import Section
from mmlaunch.recipe.suggest import closest
from mmlaunch.run import manifest, users
from mmlaunch.run.paths import RunPaths, of_checkpoint

Place = tuple[str | int, ...]
S = TypeVar("S", bound=Section)
REWARDS: Place = ("objective", "rewards")
_STAMP = re.compile(r"-\d{4}-[0-9a-f]{4}$")


@dataclass(frozen=True)
class Resolved:
    """A recipe whose trained models are pinned."""

    loaded: Loaded
    pinned: tuple[tuple[str, Path], ...] = ()
    """The field, and the folder that it starts from."""
    missing: tuple[Problem, ...] = ()
    """What names nothing that exists."""

    @property
    def notes(self) -> list[str]:
        """`model.init_from: runs/sft-1128-6b53, step 600`."""
        return [f"{field}: {_shown(path)}" for field, path in self.pinned]


class _Missing(Exception):
    """Nothing of this name: what is wrong, and what would be right."""

    def __init__(self, what: str, right: str) -> None:
        super().__init__(what)
        self.right = right


def resolve(loaded: Loaded) -> Resolved:
    """Pin every trained model that the recipe names."""
    recipe, pinned, missing = loaded.recipe, [], []
    for place, name in _names(recipe):
        try:
            path = find(name)
        except _Missing as error:
            function = closest(name, FUNCTIONS) if place[:2] == REWARDS else None
            right = f"did you mean {function}, a function that comes with mmlaunch?" if function else error.right
            missing.append(Problem(place, str(error), right))
            continue
        if path is not None and place[:2] == REWARDS and (wrong := reward_models.unfit(recipe, path)):
            missing.append(Problem(place, *wrong))
        elif path is not None:
            recipe = _with(recipe, place, str(path))
            pinned.append((".".join(map(str, place)), path))
    return Resolved(replace(loaded, recipe=recipe), tuple(pinned), tuple(missing))


def named(name: str) -> str:
    """The checkpoint or the folder that a name means, or the name itself where only the hub can know it."""
    try:
        return str(find(name) or name)
    except _Missing as error:
        raise UserError(f"{error}; {error.right}") from None


def find(name: str) -> Path | None:
    """The folder that a name means, as an absolute path; None for a name of the Hugging Face hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        run = RunPaths(path.absolute())
        return _newest_checkpoint(run) if run.resolved.is_file() else _weights(path.absolute())
    folder, word = (path.parent, path.name) if os.sep in name else (rundir.runs_folder(), name)
    if str(folder) == "runs":  # wherever this user's runs are
        folder = rundir.runs_folder()
    runs = list(rundir.all_runs(folder)) if folder.is_dir() else []
    if runs and (run_named := _run(word, runs)):
        return _newest_checkpoint(run_named)
    if HUB_NAME.fullmatch(name) and not folder.exists() and folder != rundir.runs_folder():
        return None
    near = closest(word, [run.name for run in runs] + _folders(path.parent))
    hint = f"did you mean {path.with_name(near) if os.sep in name else near}?" if near else ""
    raise _Missing(f"no run, checkpoint or model folder {name}", hint or f"relative paths start at {Path.cwd()}")


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
    raise _Missing(f"{word} fits {len(runs)} runs", f"write one of: {several}")


def _with_weights(runs: list[RunPaths]) -> list[RunPaths]:
    """Those that have saved a checkpoint, if any has: a run that failed before makes no name ambiguous."""
    return [run for run in runs if manifest.steps(run.checkpoints)] or runs


def _newest_checkpoint(run: RunPaths) -> Path:
    newest, rejected = manifest.newest(run.checkpoints, contents=False)
    if newest is None:
        why = f" ({rejected[0]})" if rejected else ""
        raise _Missing(f"{run.name} has no valid checkpoint yet{why}", f"mmlaunch status {run.name}, or another run")
    return run.checkpoint(newest.step)


def _weights(path: Path) -> Path:
    """A checkpoint or a Hugging Face directory."""
    if (path / manifest.NAME).is_file():
        try:
            manifest.validate(path, contents=False)
        except manifest.InvalidCheckpoint as error:
            raise _Missing(f"{path} is no valid checkpoint: {error}", "name another checkpoint, or its run") from None
    elif not (path / "config.json").is_file():
        raise _Missing(f"{path} holds neither a run, nor a checkpoint, nor a config.json", "name one of these")
    return path


def _names(section: Section, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Every field of a recipe that names a trained model, and its value."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        here = (*place, field.alias or name)
        for index, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, Section):
                yield from _names(item, (*here, index))
        if isinstance(value, Section):
            yield from _names(value, here)
        elif name in section.TRAINED and value is not None:
            yield here, value


def _with(section: S, place: Place, value: str) -> S:
    """The same section with another value there."""
    key, below = place[0], place[1:]
    name = next(name for name, field in type(section).model_fields.items() if (field.alias or name) == key)
    inner: Any = value
    if below and isinstance(below[0], int):
        inner = list(getattr(section, name))
        inner[below[0]] = _with(inner[below[0]], below[1:], value)
    elif below:
        inner = _with(getattr(section, name), below, value)
    return section.model_copy(update={name: inner})


def _folders(parent: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(parent) if entry.is_dir()]
    except OSError:
        return []


def _shown(path: Path) -> str:
    checkpoint = of_checkpoint(path)
    return f"{checkpoint[0].name}, step {checkpoint[1]}" if checkpoint else str(path)
