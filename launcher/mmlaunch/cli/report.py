"""`mmlaunch report`: Show what a run's attempts cost and lost."""

from __future__ import annotations

import json
import time

import click

from mmlaunch.cli import options
from mmlaunch.cli.columns import show
from mmlaunch.load import rundir
from mmlaunch.monitor import report
from mmlaunch.recipe.scalars import format_duration


@click.command(epilog="\b\nExamples:\n  mmlaunch report dpo-llama3-8b\n  mmlaunch report last --json | jq .goodput")
@options.run(many=False)
@options.as_json
def command(run: str, as_json: bool) -> None:
    """The attempts of RUN: how long each waited and lasted, what ended it, and what it lost."""
    summary = report.of(rundir.resolve(run), time.time())
    if as_json:
        click.echo(json.dumps(summary.as_json(), indent=2))
        return
    if not summary.attempts:
        click.echo(f"{summary.run}: no attempt has begun; next: mmlaunch status {summary.run}")
        return
    rows = [
        [str(a.number), a.nodes, _time(a.waited), _time(a.lasted), a.cause, _steps(a), str(a.lost_steps)]
        for a in summary.attempts
    ]
    show(["attempt", "nodes", "waited", "lasted", "ended by", "steps", "lost"], rows)
    click.echo(
        f"goodput {summary.goodput:.1%} of {_time(summary.allocated)} allocated, {summary.rank_hours:.2f} rank hours, "
        f"{_time(summary.queued)} in the queue, {summary.lost_steps} steps done twice"
    )


def _time(seconds: float) -> str:
    return format_duration(round(seconds)) if seconds >= 1 else f"{seconds:.1f}s"


def _steps(attempt: report.Attempt) -> str:
    return f"{attempt.first_step}-{attempt.last_step}" if attempt.last_step is not None else ""
