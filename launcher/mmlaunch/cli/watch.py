"""`mmlaunch watch`: Watch runs until they end; send the notifications that no job can send itself."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from mmlaunch.cli import options
from mmlaunch.errors import UserError
from mmlaunch.load import find_run
from mmlaunch.monitor import notify, status
from mmlaunch.monitor import pipeline as monitor
from mmlaunch.monitor.shards import LIVE
from mmlaunch.monitor.state import Status
from mmlaunch.recipe.scalars import format_duration, parse_duration
from mmlaunch.run import pipeline
from mmlaunch.run.paths import RunPaths


@click.command(
    epilog="\b\nExamples:\n  mmlaunch watch last\n  mmlaunch watch rlhf-1128-6b53 --every 5m\n"
    "  nohup mmlaunch watch dpo-llama3-8b rm-llama3-8b > watch.log &"
)
@options.run()
@click.option("--every", default="1m", show_default=True, help="How long to wait between two looks: 30s, 5m.")
@click.option("--once", is_flag=True, help="Look once, for a cron job.")
def command(run: tuple[str, ...], every: str, once: bool) -> None:
    """Watch each RUN until it ends, with one look at the scheduler for all of them.

    It sends the notifications of their recipes that no job has sent: the node of one died or has no network, somebody
    holds it, nothing of it moves any more. The addresses come from this shell. What was sent is not sent again.
    """
    try:
        pause = parse_duration(every)
    except (ValueError, OverflowError) as error:  # a mistake of pydantic's is a ValueError
        raise UserError(f"--every: {error}") from None
    named = [find_run.resolve_any(name) for name in run]
    known: dict[str, str] = {}
    while not _look(named, known) and not once:
        time.sleep(pause)


def _look(named: Sequence[RunPaths], known: dict[str, str]) -> bool:
    """Look once at all of them; whether nothing more can come of any."""
    pipelines = [run for run in named if pipeline.is_pipeline(run)]
    views = monitor.of_all(pipelines)
    plain = [run for run in named if not pipeline.is_pipeline(run)]
    over = True
    for paths, view in zip(pipelines, views, strict=True):
        stages = [stage.paths for stage in view.definition.stages]
        settings = notify.settings_of(stages[0])
        _say(paths, view.whole, notify.send(notify.of_pipeline(paths), settings) if settings else [], known)
        for stage, now in zip(stages, view.stages, strict=True):
            _send_and_say(stage, now, known)
        over &= view.whole.final or not any(one.state in LIVE for one in view.stages)
    for paths, now in zip(plain, status.of_all(plain), strict=True):
        _send_and_say(paths, now, known)
        over &= now.final or now.state == "lost"
    return over


def _send_and_say(run: RunPaths, now: Status, known: dict[str, str]) -> None:
    settings = notify.settings_of(run)
    _say(run, now, notify.send(notify.of_status(run, now), settings) if settings else [], known)


def _say(run: RunPaths, now: Status, problems: Sequence[str], known: dict[str, str]) -> None:
    """One line where the state is another one than before."""
    if known.get(run.name) == now.shown_state and not problems:
        return
    known[run.name] = now.shown_state
    saved = now.saved_seconds_ago
    since = f", saved {format_duration(int(saved))} ago" if saved is not None else ""
    reason = f" ({now.reason})" if now.reason else ""
    click.echo(f"{time.strftime('%H:%M:%S')}  {run.name}  {now.shown_state}{reason}, step {now.step or 0}{since}")
