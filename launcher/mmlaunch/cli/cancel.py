"""`mmlaunch cancel`: Stop a run; it saves first."""

from __future__ import annotations

import click

from mmlaunch.cli import options
from mmlaunch.load import find_run
from mmlaunch.submit import cancel


@click.command(epilog="\b\nExamples:\n  mmlaunch cancel dpo-llama3-8b\n  mmlaunch cancel last --now")
@options.run()
@click.option("--now", is_flag=True, help="Do not let it save first.")
def command(run: tuple[str, ...], now: bool) -> None:
    """Stop each RUN. It saves a checkpoint first and keeps its directory. Of a pipeline, all stages are stopped."""
    for paths in [find_run.resolve_whole(name, "cancel", pipelines=True) for name in run]:
        click.echo(f"{paths.name}: {cancel.cancel(paths, now)}")
