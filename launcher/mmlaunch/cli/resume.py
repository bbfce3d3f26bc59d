"""`mmlaunch resume`: Continue a run that has ended."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from mmlaunch.cli import options
from mmlaunch.load import find_run, plugins
from mmlaunch.run import ledger, shards
from mmlaunch.run.paths import RunPaths
from mmlaunch.run.pipeline import is_pipeline
from mmlaunch.submit.other_version import command_of_snapshot, other_version
from mmlaunch.submit.resume import resume
from mmlaunch.submit.resume_task import resume_task


@click.command(
    epilog="\b\nExamples:\n  mmlaunch resume rm-llama3-8b -s batch.tokens_per_gpu=6144\n"
    "  mmlaunch resume dpo-llama3-8b -s steps=2000 --follow\n  mmlaunch resume last -s resources.nodes=2"
)
@options.run(many=False)
@options.overrides
@options.cluster_of_run
@click.option("-f", "--follow", is_flag=True, help="Stay and show progress.")
def command(run: str, overrides: tuple[str, ...], cluster: str | None, follow: bool) -> None:
    """Continue RUN from its newest checkpoint, also after success, with other settings or on other resources.

    Of a task that is split into shards, those that did not end well are submitted again, and only those; of a pipeline
    or a sweep, the stages that did not end well, and those that need them go on behind them.

    A run of another version of mmlaunch is resumed by the launcher in its own snapshot of the code.
    """
    paths = find_run.resolve_whole(run, "resume", pipelines=True)
    if is_pipeline(paths):
        _resume_pipeline(paths, overrides, cluster, follow)
        return
    if version := other_version(paths):
        _resume_with(paths, version, overrides, cluster, follow)
    seen = ledger.length(paths.events)
    again = resume_task(paths, overrides, cluster) if shards.is_task(paths) else resume(run, overrides, cluster)
    plan = again.plan
    click.echo(f"{click.style(plan.run.name, bold=True)}   {plan.size}, profile {plan.cluster_name}")
    for file in plugins.edited(plan.recipe, again.plugin_folders):
        what = f"{file} was edited: the run goes on with the copy that it has; save it as another file to change that"
        click.echo(click.style(f"note: {what}", fg="yellow"))
    if follow:
        from mmlaunch.cli.follow import follow as stay

        raise SystemExit(stay(plan.run, seen))
    click.echo(f"next: mmlaunch status {plan.run.name}    mmlaunch logs -f {plan.run.name}")


def _resume_pipeline(run: RunPaths, overrides: tuple[str, ...], cluster: str | None, follow: bool) -> None:
    from mmlaunch.submit.resume_pipeline import resume_pipeline

    names = resume_pipeline(run, overrides, cluster)
    click.echo(f"{click.style(run.name, bold=True)}: goes on with {', '.join(names)}")
    if follow:
        from mmlaunch.cli.follow_pipeline import follow as stay

        raise SystemExit(stay(run))
    click.echo(f"next: mmlaunch status {run.name}")


def _resume_with(
    run: RunPaths, version: str, overrides: tuple[str, ...], cluster: str | None, follow: bool
) -> NoReturn:
    """Replace this process by the launcher in the run's own snapshot, with the same arguments."""
    arguments = ["resume", str(run.root), *(word for override in overrides for word in ("-s", override))]
    arguments += ["--cluster", cluster] if cluster is not None else []
    arguments += ["--follow"] if follow else []
    command, environment = command_of_snapshot(run, version, arguments)
    click.echo(f"{run.name} is a run of mmlaunch {version}: the launcher in its own snapshot resumes it")
    sys.stdout.flush()
    os.execve(command[0], command, environment)
