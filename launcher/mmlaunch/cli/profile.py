"""`mmlaunch profile`: Trace some steps of a live run with torch's profiler."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
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
@click.option("--shapes", is_flag=True, help="With the shapes of tensors; the trace grows.")
@click.option("--no-wait", is_flag=True, help="Return at once; the traces come later.")
def command(run: str, steps: int, ranks: tuple[int, ...], shapes: bool, no_wait: bool) -> None:
    """Ask the ranks of RUN for traces of their next steps, and wait for them.

    Open a trace in https://ui.perfetto.dev or chrome://tracing; the table beside it has the operations by their time.
    """
    paths = find_run.resolve(run)
    recipe = resolved.read(paths.resolved)
    if not recipe.trains:
        raise UserError(f"{paths.name} trains nothing: it has no steps")
    world = recipe.trainers.world
    if wrong := [rank for rank in ranks if rank >= world]:
        raise UserError(f"--rank {wrong[0]}: {paths.name} has ranks 0 to {world - 1}")
    _must_run(paths)
    before = set(paths.all_traces)
    paths.profiles.mkdir(exist_ok=True)
    wanted = sorted(set(ranks))
    for rank in wanted:
        paths.profile_failure(rank).unlink(missing_ok=True)
    request = {"ranks": wanted, "steps": steps, "shapes": shapes, "time": time.time()}
    publish(paths.profile_request, json.dumps(request) + "\n")
    click.echo(f"{paths.name}: {len(wanted)} rank(s) trace the next {steps} step(s)", err=True)
    for trace in [] if no_wait else _wait(paths, before, wanted):
        click.echo(str(trace))
        if (table := trace.with_name(trace.name.replace(".json.gz", ".txt"))).is_file():
            click.echo("\n".join(table.read_text(encoding="utf-8").splitlines()[:14]))


def _wait(run: RunPaths, before: set[Path], ranks: Sequence[int]) -> list[Path]:
    """The traces, when all of them are there."""
    while True:
        new = [trace for trace in run.all_traces if trace not in before]
        if len(new) >= len(ranks):
            return new
        for path in map(run.profile_failure, ranks):
            if path.exists():
                raise MachineError(f"{run.name}: {path.read_text(encoding='utf-8').strip()}")
        time.sleep(POLL)
        _must_run(run)


def _must_run(run: RunPaths) -> None:
    now = status.of(run)
    if now.state not in ("starting", "running", "restarting"):
        raise MachineError(f"{run.name} is {now.shown_state}: there are no steps to trace; mmlaunch status {run.name}")
