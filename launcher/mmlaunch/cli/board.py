"""`mmlaunch board`: The curves of runs, in TensorBoard."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable

import click

from mmlaunch.cli import options
from mmlaunch.errors import MmlaunchError
from mmlaunch.load import find_run, rundir
from mmlaunch.monitor import tensorboard
from mmlaunch.recipe import resolved
from mmlaunch.run import pipeline
from mmlaunch.run.paths import RunPaths


@click.command(
    epilog="\b\nExamples:\n  mmlaunch board\n  mmlaunch board last --open\n"
    "  mmlaunch board dpo-llama3-8b mdpo-llama3-8b --port 6010"
)
@options.run(required=False)
@click.option("--port", type=click.IntRange(0, 65535), help="Use this port. Default: the first free one from 6006 on.")
@click.option("--host", default="localhost", show_default=True, help="Where to listen; 0.0.0.0 is every network.")
@click.option("--open", "opened", is_flag=True, help="Open it in this machine's browser.")
def command(run: tuple[str, ...], port: int | None, host: str, opened: bool) -> None:
    """The curves of each RUN, or of all runs, in TensorBoard, until Ctrl-C. Whoever reaches its port can read them."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # TensorBoard ends with this command, however that ends
    try:
        with tensorboard.serving(_chosen(run), host, port) as served:
            click.echo(f"{click.style(served.url, bold=True)}   {_described(run)}; Ctrl-C ends it")
            if host in ("localhost", "127.0.0.1") and (line := tensorboard.tunnel(served.port)):
                click.echo(f"from your own machine: {line}")
                click.echo(f"and then open http://localhost:{served.port}/")
            if opened:
                click.launch(served.url)
            code = served.wait()
        raise MmlaunchError(f"TensorBoard ended by itself, with exit code {code}")
    except KeyboardInterrupt:
        click.echo("closed")


def _chosen(names: tuple[str, ...]) -> Callable[[], Iterable[RunPaths]]:
    """The runs to show. Without names: all of the folder, listed again at each call."""
    if not names:
        folder = rundir.runs_folder()
        if not any(tensorboard.has_curves(run) for run in rundir.all_runs(folder)):
            raise MmlaunchError(f"no run in {folder} has curves yet; next: mmlaunch status")
        return lambda: rundir.all_runs(folder)
    runs = [run for name in names for run in _members(find_run.resolve_any(name))]
    empty = [run for run in runs if not tensorboard.has_curves(run)]
    if len(empty) == len(runs):
        raise MmlaunchError(f"{_without(empty[0])}; next: mmlaunch status {empty[0].name}")
    for run in empty:
        click.echo(_without(run), err=True)  # they are shown once they train
    return lambda: runs


def _without(run: RunPaths) -> str:
    if not resolved.read(run.resolved).log.tensorboard:
        return f"{run.name} draws no curves: its recipe says log.tensorboard: false"
    return f"{run.name} has no curves yet"


def _described(names: tuple[str, ...]) -> str:
    return ", ".join(find_run.resolve_any(name).name for name in names) or f"all runs in {rundir.runs_folder()}"


def _members(run: RunPaths) -> list[RunPaths]:
    """The run itself; the stages of a pipeline, the points of a sweep."""
    return [stage.paths for stage in pipeline.read(run).stages] if pipeline.is_pipeline(run) else [run]
