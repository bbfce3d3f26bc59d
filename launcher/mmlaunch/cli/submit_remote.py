"""What `mmlaunch submit` does with a profile that names a host: the recipe is checked here and submitted there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import click

from mmlaunch import __version__
from mmlaunch.cli import options
from mmlaunch.errors import Problem, RecipeError
from mmlaunch.load import Loaded
from mmlaunch.load.recipe import find, is_pipeline
from mmlaunch.remote import submit as remote
from mmlaunch.remote.host import host_of
from mmlaunch.schedulers import choose

Load = Callable[[str, tuple[str, ...], str | None], Loaded]
HERE = ("overrides", "cluster")
"""What is not passed on as it was typed."""


def submit(recipe: str, overrides: tuple[str, ...], cluster: str | None, sweep: bool, load: Load) -> NoReturn:
    """Submit a recipe, a pipeline or a sweep on the host of a profile; ends with the exit code of the command there.

    `load` reads one recipe with its overrides, for a cluster.
    """
    _, profile = choose.profile(cluster)
    what = remote.ready(find(recipe), _checked(recipe, overrides, cluster, sweep, load), overrides)
    host = host_of(profile, Path.cwd().name or "project")
    there = remote.look(host)
    if there.version != __version__:
        text = f"{host.name} has mmlaunch {there.version}, and this is {__version__}: what it knows there counts"
        click.secho(f"note: {text}", fg="yellow", err=True)
    place = remote.send(host, what.files, there.rsync)
    given = options.typed(click.get_current_context(), without=HERE)
    given += ["--cluster", profile.host_cluster] if profile.host_cluster else []
    raise SystemExit(remote.start(host, place, what, given, partial(click.echo, nl=False)))


def _checked(recipe: str, overrides: tuple[str, ...], cluster: str | None, sweep: bool, load: Load) -> list[Loaded]:
    """The recipe, all stages of a pipeline, or all points of a sweep; raises `RecipeError` with all their problems."""
    if is_pipeline(recipe) and not sweep:
        from mmlaunch.load.pipeline import load_pipeline, problems_of

        whole = load_pipeline(recipe, overrides, partial(choose.misfits, cluster))
        if problems := problems_of(whole, remote.problems):
            raise RecipeError(problems)
        return [stage.loaded for stage in whole.stages]
    loaded, problems = list[Loaded](), list[Problem]()
    for values in _points(overrides) if sweep else [overrides]:
        try:
            loaded.append(_one(recipe, values, cluster, load))
            problems += loaded[-1].placed(remote.problems(loaded[-1])).problems
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(list({(one.place, one.what): one for one in problems}.values()))
    return loaded


def _points(overrides: tuple[str, ...]) -> list[tuple[str, ...]]:
    from mmlaunch.load.sweep import sweep_of

    sweep = sweep_of(overrides)
    return [(*sweep.shared, *values) for values in sweep.points]


def _one(recipe: str, overrides: tuple[str, ...], cluster: str | None, load: Load) -> Loaded:
    """One recipe. Where the model of a task is a run of the other machine, the rest is checked with another one."""
    try:
        return load(recipe, overrides, cluster)
    except RecipeError as error:
        if any(problem.path != ("model", "init_from") for problem in error.problems):
            raise
        return load(recipe, (*overrides, "model.pretrained=there"), cluster)
