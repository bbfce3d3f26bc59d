"""Run directories: where they live, how they are named, and which there are."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mmlaunch.errors import MachineError, UserError
from mmlaunch.recipe import Recipe
from mmlaunch.run.paths import RunPaths

VARIABLE = "MMLAUNCH_RUNS"


def runs_folder() -> Path:
    """Where runs live: $MMLAUNCH_RUNS, or `runs` below the working directory."""
    folder = Path(os.environ.get(VARIABLE) or "runs").expanduser().absolute()
    if "%" in str(folder) or any(ord(character) < 32 for character in str(folder)):
        raise UserError(f"runs cannot live in {str(folder)!r}: Slurm fills in %; set ${VARIABLE} to another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder; set ${VARIABLE} to the one where runs should live")
    return folder


def next_name(recipe: Recipe, cluster_name: str, folder: Path) -> str:
    """`<name>-<month and day>-<hex>`: the hex is of the content, so that `render` names the run that `submit` makes."""
    return free_name(recipe.name, f"{recipe.model_dump_json()}\0{cluster_name}\0{Path.cwd()}", folder)


def free_name(name: str, content: str, folder: Path) -> str:
    """A name like that for anything of this content."""
    stem = f"{name}-{time.strftime('%m%d')}"
    for count in range(100_000):
        digest = hashlib.sha256(f"{content}\0{count}".encode()).hexdigest()[:4]
        if not (folder / f"{stem}-{digest}").exists():
            return f"{stem}-{digest}"
    raise MachineError(f"{folder}: no free name for a run {stem}-*; move old runs away")


def all_runs(folder: Path, pipelines: bool = False, part: str = "") -> Iterator[RunPaths]:
    """Every run directory with this part in its name, the newest first; with those of pipelines where these are wanted
    too."""
    try:
        entries = [one for one in os.scandir(folder) if part in one.name and one.is_dir() and one.name[0] != "."]
    except FileNotFoundError:
        return
    except OSError as error:
        raise MachineError(f"{folder}: {error.strerror}") from error
    runs = []
    for entry in entries:
        run = RunPaths(Path(entry.path))
        for kept in (run.resolved, run.pipeline) if pipelines else (run.resolved,):
            with suppress(OSError):  # not a run
                runs.append((kept.stat().st_mtime, entry.path, run))
                break
    yield from (run for _, _, run in sorted(runs, key=lambda one: one[:2], reverse=True))
