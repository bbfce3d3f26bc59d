"""Arguments and options that several commands share."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection
from functools import wraps
from typing import Any, TypeVar, cast

import click

from mmlaunch.errors import RunNotFound

F = TypeVar("F", bound=Callable[..., Any])


def run_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from mmlaunch.load import rundir
    from mmlaunch.remote.records import records

    names = ["last", *(run.name for run in rundir.all_runs(rundir.runs_folder(), pipelines=True))]
    names += [record.run for record in records()]
    return [name for name in names if name.startswith(incomplete)]


def _clusters(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from mmlaunch.load import cluster

    return [name for name in cluster.profiles() if name.startswith(incomplete)]


def recipe(many: bool = False) -> Callable[[F], F]:
    """The recipe to work on."""
    return click.argument("recipe", nargs=-1 if many else 1, required=True, type=click.Path(readable=False))


def run(required: bool = True, many: bool = True) -> Callable[[F], F]:
    """One run or several: a name, its beginning, a directory, or `last`. A command on a run of another machine is given
    there."""

    def decorate(function: F) -> F:
        @wraps(function)
        def here_or_there(run: str | tuple[str, ...], **parameters: Any) -> Any:
            _forward((run,) if isinstance(run, str) else run)
            return function(run=run, **parameters)

        argument = click.argument("run", nargs=-1 if many else 1, required=required, shell_complete=run_names)
        return cast("F", argument(here_or_there))

    return decorate


def _forward(names: tuple[str, ...]) -> None:
    """Give the command of this context on the machine of the runs, if that is another one."""
    from mmlaunch.remote.forward import forward, remote_runs

    if there := remote_runs(names):
        ctx = click.get_current_context()
        host, runs = there
        code = forward(ctx.info_name or "", host, runs, typed(ctx))
        if code == 0 and (ctx.info_name == "export" or ctx.params.get("html") or ctx.params.get("output")):
            click.echo(f"written on {host.name}, in {host.folder}")
        if code == RunNotFound.exit_code:
            known = " ".join(shlex.quote(str(record.path)) for record in runs.values())
            click.echo(f"{host.name} does not know it; if it is gone for good: rm {known}", err=True)
        raise SystemExit(code)


def typed(ctx: click.Context, without: Collection[str] = ()) -> list[str]:
    """The options of the command of a context, as they can be typed again."""
    words: list[str] = []
    for option in ctx.command.params:
        value = ctx.params.get(option.name or "")
        if not isinstance(option, click.Option) or option.name in without or value in (None, False):
            continue
        values = value if isinstance(value, tuple) else (value,)
        words += [option.opts[-1]] if option.is_flag else [f"{option.opts[-1]}={one}" for one in values]
    return words


def _with_values(ctx: click.Context, param: click.Parameter, written: tuple[str, ...]) -> tuple[str, ...]:
    """Explain `-s optim.lr 1e-6` (no equals sign), before click complains of the extra word `1e-6`."""
    if written:
        from mmlaunch.load.overrides import split

        for override in written:
            split(override)
    return written


def overrides(function: F) -> F:
    return click.option(
        "-s",
        "--set",
        "overrides",
        multiple=True,
        callback=_with_values,
        metavar="PATH=VALUE",
        help="Change the recipe, e.g. -s optim.lr=1e-6.",
    )(function)


def cluster(function: F) -> F:
    return _cluster("$MMLAUNCH_CLUSTER, or what this machine offers")(function)


def cluster_of_run(function: F) -> F:
    """The same for a run that has one already."""
    return _cluster("the profile that the run was submitted with")(function)


def _cluster(otherwise: str) -> Callable[[F], F]:
    what = f"The cluster profile: a name or a YAML file. Without it: {otherwise}."
    return click.option("--cluster", metavar="NAME", shell_complete=_clusters, help=what)


def as_json(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")(function)


def overwrite(function: F) -> F:
    return click.option("--overwrite", is_flag=True, help="Replace what stands there already.")(function)


def rows(function: F) -> F:
    """The rows that a command on data reads."""
    options = (
        click.argument("input", type=click.Path()),
        click.option(
            "--from", "format", default="auto", show_default=True, metavar="FORMAT", help="The format of INPUT."
        ),
        click.option(
            "--images", type=click.Path(), help="The folder to which image paths are relative. Default: INPUT's folder."
        ),
        click.option("--split", metavar="NAME", help="The split of a Hugging Face data set."),
        click.option(
            "--on-bad", type=click.Choice(["error", "skip"]), default="error", show_default=True,
            help="What a row or an image that cannot be read does; skipped ones are counted and listed.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def row_arguments(format: str, images: str | None, split: str | None, on_bad: str, overwrite: bool) -> list[str]:
    """The same for the program that reads them, whose last arguments are the paths."""
    arguments = [f"--from={format}", f"--on-bad={on_bad}", *(["--overwrite"] if overwrite else [])]
    arguments += [f"--images={images}"] if images else []
    return arguments + ([f"--split={split}"] if split else [])
