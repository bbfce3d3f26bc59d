"""`mmlaunch status`: Where runs stand, and what happens next."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from mmlaunch.cli import options
from mmlaunch.cli.columns import show
from mmlaunch.cli.graph import drawn, others, state_of
from mmlaunch.cli.status_remote import others_of
from mmlaunch.load import find_run, rundir
from mmlaunch.monitor import pipeline as monitor
from mmlaunch.monitor import status
from mmlaunch.monitor.pipeline import View
from mmlaunch.monitor.state import Status
from mmlaunch.run import pipeline
from mmlaunch.run.pipeline import is_pipeline

WATCH = 2.0
_COLOURS = {
    "running": "green",
    "done": "blue",
    "failed": "red",
    "lost": "red",
    "cancelled": "yellow",
    "restarting": "yellow",
}


@click.command(
    epilog="\b\nExamples:\n  mmlaunch status\n  mmlaunch status dpo-llama3-8b --watch\n"
    "  mmlaunch status --json | jq '.[].state'"
)
@options.run(required=False)
@click.option("-n", "--newest", type=click.IntRange(min=1), help="Only the newest N runs.")
@click.option("-w", "--watch", is_flag=True, help="Stay, and show changes.")
@options.as_json
def command(run: tuple[str, ...], newest: int | None, watch: bool, as_json: bool) -> None:
    """Where each RUN stands (all runs, if none is named) and what happens next. Of a pipeline, the graph is drawn.

    Without a RUN, those of other machines to which runs were submitted from here are shown too, but for --watch.
    """
    paths = [find_run.resolve_any(name) for name in run]
    paths = paths or list(rundir.all_runs(rundir.runs_folder(), pipelines=True))
    whole = [path for path in paths if is_pipeline(path)]
    stages = {stage.run for path in whole for stage in pipeline.read(path).stages} if not run else set[str]()
    paths = [path for path in paths if path not in whole and str(path.root) not in stages][:newest]
    elsewhere = [] if run or watch else list(others_of(newest, as_json))
    while True:
        views = monitor.of_all(whole[:newest])
        statuses = status.of_all(paths, whole=bool(run))
        if as_json:
            there = [record for place in elsewhere for record in place.records]
            click.echo(json.dumps([*map(_record, views), *(one.as_json() for one in statuses), *there], indent=2))
        else:
            if watch and sys.stdout.isatty():
                click.clear()
            for view in views:
                _draw(view)
            if statuses or not (views or elsewhere):
                _say(statuses, detailed=bool(run))
            for number, place in enumerate(elsewhere):
                place.say(apart=bool(number or statuses or views))
        if not watch or all(one.final or one.state == "lost" for one in (*statuses, *(v.whole for v in views))):
            return
        time.sleep(WATCH)


def _record(view: View) -> dict[str, Any]:
    stages = zip(view.definition.stages, view.stages, strict=True)
    own = [
        {"stage": stage.name, "needs": stage.needs, "reused": stage.reused, **one.as_json()} for stage, one in stages
    ]
    return {**view.whole.as_json(), "stages": own}


def _draw(view: View) -> None:
    """A pipeline: one line for it, and its stages as a tree."""
    whole, definition = view.whole, view.definition
    click.echo(f"{click.style(whole.run, bold=True)}   {whole.state}, {whole.reason}")
    rows, colours = [], []
    for line, place in drawn(definition):
        stage, now = definition.stages[place], view.stages[place]
        following = now.next if not (stage.reused or now.state == "done") else now.run
        also = others(definition, stage)
        rows.append([f"  {line}", state_of(stage, now), *_row(now)[2:6], "; ".join(filter(None, (following, also)))])
        colours.append(_COLOURS.get(now.state, ""))
    show([f"  {definition.member}", "state", "step", "rate", "loss", "saved", "next"], rows, colour_of_second=colours)
    if whole.next:
        click.echo(f"  next: {whole.next}")


def _say(statuses: Sequence[Status], detailed: bool) -> None:
    if not statuses:
        click.echo(f"no runs in {rundir.runs_folder()}; next: mmlaunch submit recipes/quickstart.yaml --follow")
        return
    rows = [_row(one) for one in statuses]
    colours = [_COLOURS.get(one.state, "") for one in statuses]
    show(["run", "state", "step", "rate", "loss", "saved", "next"], rows, colour_of_second=colours)
    for one in statuses:
        if detailed and one.reason:
            click.echo(f"{one.run}: {one.reason}")
        if one.torn_lines:
            left_out = "what cannot be read, or cannot be true, is left out"
            click.echo(f"{one.run}: {one.torn_lines} damaged line(s) in its ledger: {left_out}")


def _row(one: Status) -> list[str]:
    rate = f"{one.rate:.1f}/s" if one.rate else ""
    loss = f"{one.loss:.4g}" if one.loss is not None else ""
    return [one.run, one.shown_state, _step(one), rate, loss, _saved(one), one.next]


def _step(one: Status) -> str:
    if one.step is None:
        return f"0/{one.steps}" if one.steps else ""
    return f"{one.step}/{one.steps}" if one.steps else str(one.step)


def _saved(one: Status) -> str:
    if one.saved_seconds_ago is None:
        return ""
    return f"step {one.saved_step}, {ago(one.saved_seconds_ago)}"


def ago(seconds: float) -> str:
    """`4m ago`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit} ago"
    return f"{int(seconds)}s ago"
