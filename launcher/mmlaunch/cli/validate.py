"""`mmlaunch validate`: Check a recipe; every mistake at once, with its line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import click

from mmlaunch.cli import options
from mmlaunch.errors import MmlaunchError, Problem, RecipeError
from mmlaunch.estimate.knowable import contradictions
from mmlaunch.load import Loaded, load_recipe, plugins
from mmlaunch.load.cluster import is_profile
from mmlaunch.load.plugins import Folders
from mmlaunch.load.recipe import is_pipeline
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.scalars import STAGE

SHORT = 3600
"""Seconds: no profile warns its ranks so long before the end."""


@click.command(
    epilog="\b\nExamples:\n  mmlaunch validate recipes/*.yaml\n  mmlaunch validate my.yaml -s batch.global=512 --json\n"
    "  mmlaunch validate dpo.yaml cluster.yaml"
)
@options.recipe(many=True)
@options.overrides
@options.cluster
@options.as_json
def command(recipe: tuple[str, ...], overrides: tuple[str, ...], cluster: str | None, as_json: bool) -> None:
    """Check RECIPE without writing anything. Exit code 0 when it is right, 2 when it is not.

    A cluster profile that names its executor may stand among the recipes.
    """
    problems: list[Problem] = []
    for path in recipe:
        try:
            if is_profile(path):
                _check_profile(path, silent=as_json)
                continue
            if is_pipeline(path):
                _check_pipeline(path, overrides, cluster, silent=as_json)
                continue
            loaded = _checked(path, overrides, cluster)
        except RecipeError as error:
            problems += error.problems
        else:
            if not as_json:
                _say(path, loaded, cluster)
    if as_json:
        click.echo(json.dumps([_record(problem) for problem in problems], indent=2))
        raise SystemExit(RecipeError.exit_code if problems else 0)
    if problems:
        raise RecipeError(problems)


def _check_profile(path: str, silent: bool) -> None:
    """Check a cluster profile; raises `RecipeError` with its problems."""
    from mmlaunch.schedulers import choose  # only whoever checks a profile waits for it

    name, cluster = choose.profile(path)
    if not silent:
        where = f", partition {cluster.partition}" if cluster.partition else ""
        click.echo(f"{path}: {click.style('ok', fg='green')}  cluster profile {name}: {cluster.executor}{where}")


def _check_pipeline(path: str, overrides: tuple[str, ...], cluster: str | None, silent: bool) -> None:
    """Check all stages of a pipeline; raises `RecipeError` with the problems of all of them."""
    from mmlaunch.load.pipeline import load_pipeline, problems_of

    also = partial(_misfits, cluster) if cluster is not None else lambda data: ()
    loaded = load_pipeline(path, overrides, also)
    if problems := problems_of(loaded, _wrong):
        raise RecipeError(problems)
    if not silent:
        stages = ", ".join(f"{one.name} ({one.loaded.recipe.objective.method})" for one in loaded.stages)
        click.echo(f"{path}: {click.style('ok', fg='green')}  {loaded.name}: {len(loaded.stages)} stages: {stages}")


def _misfits(cluster: str, data: Any) -> Sequence[Problem]:
    from mmlaunch.schedulers import choose  # only whoever names a cluster waits for it

    return choose.misfits(cluster, data)


def _wrong(loaded: Loaded) -> list[Problem]:
    own = plugins.problems(loaded.recipe, Folders(loaded.path.parent, Path.cwd()))
    return [*contradictions(loaded.recipe), *own]


def _checked(path: str, overrides: tuple[str, ...], cluster: str | None) -> Loaded:
    loaded = load_recipe(path, overrides, partial(_misfits, cluster) if cluster is not None else lambda data: ())
    if problems := _wrong(loaded):
        raise loaded.placed(problems)
    return loaded


def _say(path: str, loaded: Loaded, cluster: str | None) -> None:
    recipe = loaded.recipe
    world, engine = recipe.trainers.describe_world(), recipe.objective.served_by
    world += f"; {engine.describe(recipe.resources.gpus_per_node)}" if engine is not None else ""
    click.echo(f"{path}: {click.style('ok', fg='green')}  {recipe.name}: {recipe.objective.method} on {world}")
    if note := _hurry(loaded, cluster):
        click.echo(click.style(f"  note: {loaded.placed([note]).problems[0]}", fg="yellow"))
    from mmlaunch.load import trained  # only a recipe that is right is looked at further

    for problem in trained.resolve(loaded).missing:
        placed = loaded.placed([problem]).problems[0]
        click.echo(click.style(f"  note: {placed}; submit needs it", fg="yellow"))
    for place, source in _missing_data(recipe):
        click.echo(click.style(f"  note: {place}: {source} is not here; submit needs it", fg="yellow"))


def _missing_data(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The files of data that are not on this machine, and where the recipe names them."""
    for group in ("train", "input", "eval"):
        for index, source in enumerate(getattr(recipe.data, group)):
            path = source.path
            if path is None or path.startswith((STAGE, "hf:")):
                continue
            with suppress(OSError):
                if not Path(path).expanduser().exists():
                    yield f"data.{group}[{index}].path", path


def _hurry(loaded: Loaded, cluster: str | None) -> Problem | None:
    """A time limit that leaves no time for a step on this cluster, or on the usual one."""
    if cluster is None and loaded.recipe.resources.time >= SHORT:  # do not look for the usual profile for nothing
        return None
    from mmlaunch.estimate.start import too_short
    from mmlaunch.schedulers import choose

    try:
        what = too_short(loaded.recipe, choose.profile(cluster)[1])
    except MmlaunchError:  # a usual profile that is wrong is told by whatever needs one
        return None
    return Problem(("resources", "time"), what, "ask for more") if what else None


def _record(problem: Problem) -> dict[str, str]:
    return {"place": problem.place, "path": problem.dotted, "what": problem.what, "right": problem.right}
