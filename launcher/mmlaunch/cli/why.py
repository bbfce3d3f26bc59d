"""`mmlaunch why`: What ended a run, and what to type next."""

from __future__ import annotations

import json

import click

from mmlaunch.cli import options
from mmlaunch.load import find_run
from mmlaunch.monitor import why
from mmlaunch.run.pipeline import is_pipeline


@click.command(epilog="\b\nExamples:\n  mmlaunch why rm-llama3-8b\n  mmlaunch why last --json")
@options.run(many=False)
@options.as_json
def command(run: str, as_json: bool) -> None:
    """What ended RUN, what shows it, what was done about it, and what to type next."""
    paths = find_run.resolve_any(run)
    story = why.of_pipeline(paths) if is_pipeline(paths) else why.of(paths)
    if as_json:
        click.echo(json.dumps(story.as_json(), indent=2))
        return
    click.echo(f"{click.style(story.run, bold=True)}: {story.what}.")
    if story.evidence:
        click.echo(f"{story.evidence}{f'   {story.place}' if story.place else ''}")
    if story.done:
        click.echo(story.done)
    click.echo(f"next: {story.next}")
