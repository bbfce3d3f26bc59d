"""Shows the progress of a pipeline until no stage goes on: the lines of each stage bear its name."""

from __future__ import annotations

import time

import click

from mmlaunch.cli.columns import show, wrapped
from mmlaunch.cli.follow import CODES, INTERRUPTED, LOST, describe_event
from mmlaunch.cli.graph import drawn, state_of
from mmlaunch.cli.results import evaluated
from mmlaunch.monitor import gains, pipeline, watch
from mmlaunch.monitor.pipeline import View
from mmlaunch.monitor.shards import LIVE
from mmlaunch.run import shards
from mmlaunch.run.ledger import Tail, kind_of
from mmlaunch.run.paths import RunPaths

POLL = 0.5
QUIET = 4.0
"""Seconds without a line after which it is said what the stages are busy with."""
PATIENCE = 20.0
"""Seconds in which a stage that could begin is released."""


def follow(run: RunPaths) -> int:
    """Show progress until the pipeline has ended; returns its exit code. Ctrl-C leaves it running."""
    try:
        view = _follow(run)
    except KeyboardInterrupt:
        click.echo(f"\nleft; the pipeline goes on. next: mmlaunch status {run.name}    mmlaunch cancel {run.name}")
        return INTERRUPTED
    _say(run, view)
    return CODES.get(view.whole.state, LOST)


def _follow(run: RunPaths) -> View:
    view = pipeline.of(run)
    tails = {stage.name: Tail(stage.paths.events) for stage in view.definition.stages if not stage.reused}
    spoken = began = over = time.monotonic()
    heard: dict[str, float] = {}
    """When each stage has last shown something."""
    rows: dict[str, str] = {}
    while True:
        for name, tail in tails.items():
            for event in tail.new():
                ended = f"{event.get('state')} {event.get('reason', '')}".rstrip()
                if text := ended if kind_of(event) == "ended" else describe_event(event):
                    click.echo(wrapped(f"{name}: {text}", 4))
                    spoken = heard[name] = time.monotonic()
        view = pipeline.of(run)
        if view.whole.state not in LIVE and (view.whole.state != "held" or time.monotonic() - over > PATIENCE):
            return view
        over = time.monotonic() if view.whole.state in LIVE else over
        for stage, now in zip(view.definition.stages, view.stages, strict=True):
            live = now.state in LIVE and now.state != "waiting"
            line = f"{now.step or 0}/{now.steps} rows" if live and shards.is_task(stage.paths) else ""
            if line and line != rows.get(stage.name):
                rows[stage.name] = line
                click.echo(f"{stage.name}: {line}")
                spoken = heard[stage.name] = time.monotonic()
        if time.monotonic() - spoken > QUIET:
            for stage, now in zip(view.definition.stages, view.stages, strict=True):
                if now.state in LIVE and now.state != "waiting":
                    ranks = shards.shard(stage.paths, 0) if shards.is_task(stage.paths) else stage.paths
                    busy = watch.phase(ranks, heard.get(stage.name, spoken))
                    click.echo(f"{stage.name}: {describe_event(busy) if busy else now.state}")
            spoken = time.monotonic()
        time.sleep(POLL if time.monotonic() - began > 1 else 0.1)


def _say(run: RunPaths, view: View) -> None:
    """A table of what each stage has gained, and where to look next."""
    rows = []
    for stage, now in zip(view.definition.stages, view.stages, strict=True):
        if now.state == "done" and shards.is_task(stage.paths):
            evaluated(stage.paths)
    for line, place in drawn(view.definition):
        stage, now = view.definition.stages[place], view.stages[place]
        rows.append([line, state_of(stage, now), gains.of(stage.paths), now.run])
    click.echo("")
    show([view.definition.member, "state", "gain", "run"], rows)
    click.echo(f"{run.name}: {view.whole.state}, {view.whole.reason}")
    if view.whole.next:
        click.echo(f"next: {view.whole.next}")
