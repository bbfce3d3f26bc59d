"""`mmlaunch watch`: Watch runs until they end; send the notifications that no job can send itself."""

from __future__ import annotations

import time

import click

from mmlaunch.cli import options
from mmlaunch.errors import UserError
from mmlaunch.load import find_run
from mmlaunch.monitor import notify, status
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

    What `notify` in their recipes asks for is sent where a job cannot do it: its node died, somebody holds it, nothing
    of it is written any more. The addresses come from this shell. What was sent is not sent again.
    """
    try:
        pause = parse_duration(every)
    except (ValueError, OverflowError) as error:  # a mistake of pydantic's is a ValueError
        raise UserError(f"--every: {error}") from None
    runs = [one for name in run for one in _stages(find_run.resolve_any(name))]
    known: dict[str, str] = {}
    while True:
        states = status.of_all(runs)
        for paths, now in zip(runs, states, strict=True):
            _look(paths, now, known)
        if once or all(now.final or now.state == "lost" for now in states):
            return
        time.sleep(pause)


def _stages(run: RunPaths) -> list[RunPaths]:
    """The run itself, or the stages of a pipeline."""
    return [stage.paths for stage in pipeline.read(run).stages] if pipeline.is_pipeline(run) else [run]


def _look(run: RunPaths, now: Status, known: dict[str, str]) -> None:
    settings = notify.settings_of(run)
    sent = notify.of_status(run, now) if settings else []
    wrong = notify.send(run, sent, settings)
    if known.get(run.name) != now.shown_state or wrong:
        stamp, since = time.strftime("%H:%M:%S"), ""
        if now.saved_seconds_ago is not None:
            since = f", saved {format_duration(int(now.saved_seconds_ago))} ago"
        reason = f" ({now.reason})" if now.reason else ""
        click.echo(f"{stamp}  {run.name}  {now.shown_state}{reason}, step {now.step or 0}{since}")
    known[run.name] = now.shown_state
