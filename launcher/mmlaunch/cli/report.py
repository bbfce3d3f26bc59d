"""`mmlaunch report`: Show what a run's attempts cost and lost."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from mmlaunch.cli import options
from mmlaunch.cli.columns import show
from mmlaunch.errors import UserError
from mmlaunch.load import find_run
from mmlaunch.monitor import report, rollouts
from mmlaunch.recipe.scalars import format_duration
from mmlaunch.run import shards
from mmlaunch.run.files import explained, publish
from mmlaunch.run.paths import RunPaths
from mmlaunch.run.pipeline import is_pipeline


@click.command(
    epilog="\b\nExamples:\n  mmlaunch report dpo-llama3-8b\n  mmlaunch report last --json | jq .goodput\n"
    "  mmlaunch report rlhf-llama3 --html -o rlhf.html"
)
@options.run(many=False)
@click.option(
    "--html",
    is_flag=True,
    help="Write one page: graph, timeline, curves, samples, where the time went; also of a pipeline or a sweep.",
)
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Its file. Default: report.html in the run.")
@options.as_json
def command(run: str, html: bool, output: str | None, as_json: bool) -> None:
    """The attempts of RUN: how long each waited and lasted, what ended it, and what it lost.

    A run of reinforcement learning shows its rollouts too: reward against KL, and some answers of the newest.
    """
    paths = find_run.resolve_any(run)
    if html or output:
        _write_page(paths, output)
        return
    if is_pipeline(paths):
        right = f"mmlaunch report {paths.name} --html, or name a stage: mmlaunch report {paths.name}/STAGE"
        raise UserError(f"{paths.name} is made of runs that have attempts of their own; {right}")
    if shards.is_task(paths):
        right = f"mmlaunch status {paths.name}, mmlaunch results {paths.name}, or mmlaunch report {paths.name}/0"
        raise UserError(f"{paths.name} is split into shards, and each has attempts of its own; {right}")
    summary, made = report.of(paths, time.time()), rollouts.of(paths)
    if as_json:
        more = (
            {} if made is None else {"rollouts": made.as_json(), "samples": made.samples, "warnings": made.warnings()}
        )
        click.echo(json.dumps({**summary.as_json(), **more}, indent=2))
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
    if startup := next((a.startup for a in reversed(summary.attempts) if a.startup), None):
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in startup.items() if seconds >= 0.05)
        click.echo(f"last start-up, to the end of its first step: {sum(startup.values()):.1f} s: {phases}")
    if made is not None:
        _show_rollouts(made)


def _write_page(run: RunPaths, output: str | None) -> None:
    from mmlaunch.results.report_page import page  # jinja2 takes its time

    path = Path(output) if output else run.root / "report.html"
    with explained("cannot write the page"):
        publish(path, page(run))
    click.echo(f"{path.absolute()}: open it in a browser")


def _show_rollouts(made: rollouts.Rollouts) -> None:
    click.echo(f"\n{len(made.steps)} rollouts")
    show(*made.rows())
    for warning in made.warnings():
        click.echo(f"look: {warning}")
    for sample in made.samples:
        score = "no score" if sample.get("score") is None else f"score {sample['score']}"
        click.echo(
            f"\n{sample.get('origin', '')}  {score}{'' if sample.get('ended') else ', cut at its greatest length'}"
        )
        for name in ("question", "truth", "answer"):
            if sample.get(name):
                click.echo(f"  {name:<9}{_shown(str(sample[name]))}")


def _shown(text: str, most: int = 400) -> str:
    """On one line, without what a terminal would obey."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return plain if len(plain) <= most else f"{plain[:most]} ..."


def _time(seconds: float) -> str:
    return format_duration(round(seconds)) if seconds >= 1 else f"{seconds:.1f}s"


def _steps(attempt: report.Attempt) -> str:
    return f"{attempt.first_step}-{attempt.last_step}" if attempt.last_step is not None else ""
