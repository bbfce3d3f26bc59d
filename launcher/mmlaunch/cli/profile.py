"""`mmlaunch profile`: Trace some steps of a live run with torch's profiler."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from mmlaunch.cli import options
from mmlaunch.errors import MachineError, UserError
from mmlaunch.load import find_run
from mmlaunch.monitor import status
from mmlaunch.recipe import resolved
from mmlaunch.run.files import publish
from mmlaunch.run.paths import RunPaths

POLL = 0.5


@click.command(
    epilog="\b\nExamples:\n  mmlaunch profile last\n  mmlaunch profile dpo-llama3-8b --steps 5 --rank 0 --rank 8"
)
@options.run(many=False)
@click.option("--steps", type=click.IntRange(1, 1000), default=3, show_default=True, help="How many steps.")
@click.option(
    "--rank", "ranks", type=click.IntRange(min=0), multiple=True, default=(0,), help="Which ranks; the first."
)
@click.option("--shapes", is_flag=True, help="Say the shapes of tensors; the trace grows.")
@click.option("--no-wait", is_flag=True, help="Ask for it and return.")
def command(run: str, steps: int, ranks: tuple[int, ...], shapes: bool, no_wait: bool) -> None:
    """Ask the ranks of RUN for traces of their next steps, and wait for them.

    Open a trace in https://ui.perfetto.dev or chrome://tracing; the table beside it has the operations by their time.
    """
    paths = find_run.resolve(run)
    world = resolved.read(paths.resolved).trainers.world
    if wrong := [rank for rank in ranks if rank >= world]:
        raise UserError(f"--rank {wrong[0]}: {paths.name} has ranks 0 to {world - 1}")
    _must_run(paths)
    before = set(paths.all_traces)
    paths.profiles.mkdir(exist_ok=True)
    asked = {"ranks": sorted(set(ranks)), "steps": steps, "shapes": shapes, "time": time.time()}
    publish(paths.profile_request, json.dumps(asked) + "\n")
    click.echo(f"asked {len(set(ranks))} rank(s) of {paths.name} for {steps} step(s)", err=True)
    for trace in [] if no_wait else _wait(paths, before, len(set(ranks))):
        click.echo(str(trace))
        if (table := trace.with_name(trace.name.replace(".json.gz", ".txt"))).is_file():
            click.echo("\n".join(table.read_text(encoding="utf-8").splitlines()[:14]))


def _wait(run: RunPaths, before: set[Path], count: int) -> list[Path]:
    """The traces, when all of them are there."""
    while True:
        new = [trace for trace in run.all_traces if trace not in before]
        if len(new) >= count:
            return new
        time.sleep(POLL)
        _must_run(run)


def _must_run(run: RunPaths) -> None:
    now = status.of(run)
    if now.state not in ("starting", "running", "restarting"):
        raise MachineError(f"{run.name} is {now.shown_state}: there are no steps to trace; mmlaunch status {run.name}")
