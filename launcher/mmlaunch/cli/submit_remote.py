"""What `mmlaunch submit` does with a profile that names a host: the recipe is checked here and submitted there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

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
L = TypeVar("L")
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

        whole = _read(overrides, lambda given: load_pipeline(recipe, given, partial(choose.misfits, cluster)))
        if problems := problems_of(whole, remote.problems):
            raise RecipeError(problems)
        return [stage.loaded for stage in whole.stages]
    loaded, problems = list[Loaded](), list[Problem]()
    for values in _points(overrides) if sweep else [overrides]:
        try:
            loaded.append(_read(values, lambda given: load(recipe, given, cluster)))
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


def _read(overrides: tuple[str, ...], load: Callable[[tuple[str, ...]], L]) -> L:
    """A recipe or a pipeline. Where the model of a task is a run of the other machine, whose parts are not known here,
    the rest is checked with another model."""
    try:
        return load(overrides)
    except RecipeError as error:
        wrong = [problem for problem in error.problems if problem.path[-2:] != ("model", "init_from")]
        places = [".".join(map(str, problem.path[:-1])) for problem in error.problems if problem not in wrong]
        models = [f"{place}.pretrained=there" for place in places]
        if wrong or set(models) & set(overrides):
            raise RecipeError(wrong or error.problems) from None
        return _read((*overrides, *models), load)
