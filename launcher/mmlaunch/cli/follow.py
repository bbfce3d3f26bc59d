"""Shows a run as it goes: a progress bar in a terminal, a line for each logged step in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from mmlaunch.cli.columns import wrapped
from mmlaunch.monitor import status, watch
from mmlaunch.monitor.watch import WAITING
from mmlaunch.run import ledger, shards
from mmlaunch.run.ledger import Event, kind_of
from mmlaunch.run.paths import RunPaths

CODES = {"done": 0, "cancelled": 130}
LOST = 1
INTERRUPTED = 130
WIDE = 120
TASK_POLL = 2.0
"""Seconds between two looks at the shards of a task."""
_SHOWN = ("loss", "accuracy", "reward", "right", "kl_sequence")
"""What is shown of a step, where it has it."""


def follow(run: RunPaths, lines: int = 0) -> int:
    """Show progress until the run ends; returns the run's exit code.

    The first `lines` lines of the ledger are left out. Ctrl-C leaves the run running, and returns 130: the end was
    not seen.
    """
    if shards.is_task(run):
        return _follow_task(run)
    try:
        show = _bar if sys.stdout.isatty() else _lines
        ended = show(watch.events(run, lines))
    except KeyboardInterrupt:
        click.echo(f"\nleft; the run goes on. next: mmlaunch status {run.name}    mmlaunch cancel {run.name}")
        return INTERRUPTED
    if ended is None and (now := status.of(run)).final:
        click.echo(f"{run.name}: {now.state}: {now.reason}")
        return CODES.get(now.state, LOST)
    if ended is None:
        click.echo(f"{run.name}: its process is gone and left no word. next: mmlaunch why {run.name}", err=True)
        return LOST
    return _last_words(run, ended)


def _follow_task(run: RunPaths) -> int:
    """Show how many rows of a task are done until its shards have ended, and then what came of it."""
    from mmlaunch.cli.results import show
    from mmlaunch.monitor.shards import LIVE

    shown = ""
    try:
        while (now := status.of(run)).state in LIVE:
            rate = f", {now.rate:.1f} rows/s, {now.next}" if now.rate else ""
            line = f"{now.step or 0}/{now.steps or '?'} rows, {now.reason}{rate}"
            if line != shown:
                click.echo(f"\r\x1b[K{line}" if sys.stdout.isatty() else line, nl=not sys.stdout.isatty())
            shown = line
            time.sleep(TASK_POLL)
    except KeyboardInterrupt:
        click.echo(f"\nleft; the task goes on. next: mmlaunch status {run.name}    mmlaunch cancel {run.name}")
        return INTERRUPTED
    click.echo(f"{chr(10) if sys.stdout.isatty() and shown else ''}{run.name}: {now.state}, {now.reason}")
    if now.next.startswith("mmlaunch results"):
        return show(run)
    click.echo(f"next: {now.next}")
    return CODES.get(now.state, LOST)


def _last_words(run: RunPaths, ended: Event) -> int:
    state = str(ended["state"])
    events = ledger.read(run.events)
    colour = {"done": "green", "failed": "red"}.get(state, "yellow")
    line = wrapped(f"{run.name}: {state} {_result(events)}")
    click.echo(line.replace(f": {state} ", f": {click.style(state, fg=colour, bold=True)} ", 1))
    if state == "failed":
        failed = events.last("failed") or {}
        click.echo(wrapped(f"  {failed.get('cause', '?')}: {failed.get('evidence') or 'no evidence was left'}", 4))
        click.echo(wrapped(f"  not restarted: {ended.get('reason', '')}", 4))
        click.echo(f"next: mmlaunch why {run.name}")
    elif state == "done":
        newest = events.last("checkpoint")
        if newest:
            click.echo(f"  {run.checkpoint(int(newest['step']))}")
    return CODES.get(state, int(ended.get("exit_code") or LOST))


def _result(events: ledger.Events) -> str:
    evaluated = events.last("evaluated")
    return _metrics(evaluated) if evaluated else ""


def describe(key: str, value: float) -> str:
    """`eval/accuracy 98.4 %`, `loss 0.213`."""
    return f"{key} {value:.1%}" if key.endswith("accuracy") and 0 <= value <= 1 else f"{key} {value:.4g}"


def _lines(events: Iterator[Event | None]) -> Event | None:
    for event in events:
        if event is None:
            continue
        if text := describe_event(event):
            click.echo(text)
        if kind_of(event) == "ended":
            return event
    return None


def describe_event(event: Event) -> str:
    """One line on an event, for a person; empty for most kinds."""
    kind = kind_of(event)
    if kind == "step":
        return f"step {event['step']}/{event.get('steps', '?')}  {_metrics(event)}{_pace(event, ' examples/s')}"
    if kind in ("reference", "generated"):
        return f"{kind} {event['done']}/{event['total']}"
    if kind == "rollout":
        measured = {name: event.get("metrics", {}).get(name) for name in ("reward", "kl_sequence", "length")}
        return f"rollout at step {event['step']}: {_metrics({'metrics': measured})}"
    if kind == "evaluated":
        return f"evaluated at step {event.get('step')}: {_metrics(event)}"
    if kind == "checkpoint" and "rejected" not in event:
        return f"saved step {event['step']}"
    if kind == "checkpoint":
        return f"checkpoint rejected: {event['rejected']}"
    if kind == "warning":
        return f"warning: {event.get('what', '')}"
    if kind == "started":
        return f"attempt {event['attempt']} started on {event.get('nodes', '?')}"
    if "doing" in event:
        return f"... {event['doing']} ({event['seconds']} s)"
    if kind in (*WAITING, "resumed", "failed", "requeued", "signal", "cancelling"):
        details = [str(event[key]) for key in ("cause", "name", "evidence", "reason") if event.get(key)]
        step = f" at step {event['step']}" if event.get("step") is not None else ""
        shown = "restarts in the same job" if event.get("in_job") else f"{kind}{step}"
        return f"{shown}: {'; '.join(details)}" if details else shown
    return ""


def _metrics(event: Event) -> str:
    measured = event.get("metrics") or {key: event.get(key) for key in _SHOWN}
    return "  ".join(describe(key, value) for key, value in measured.items() if isinstance(value, float))


def _pace(event: Event, rate: str) -> str:
    """Rate, tokens, memory, and MFU if it is known."""
    shown = {"rate": f"{{:.1f}}{rate}", "tokens_per_second": "{:.0f} tokens/s", "mfu": "MFU {:.0%}"}
    known = [text.format(event[key]) for key, text in shown.items() if isinstance(event.get(key), float)]
    known += [f"{event['memory'] / 1e9:.1f} GB"] if isinstance(event.get("memory"), int) else []
    return "".join(f"  {text}" for text in known)


def _bar(events: Iterator[Event | None]) -> Event | None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    metrics = TextColumn("{task.fields[metrics]}")
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        metrics,
    )
    console = Console()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=None, metrics="")
        for event in events:
            if event is None:
                continue
            if kind_of(event) == "ended":
                return event
            if kind_of(event) == "submitted":
                progress.update(task, total=event.get("steps"))
            elif kind_of(event) == "step":
                fields: dict[str, Any] = {
                    "description": "training",
                    "completed": event["step"],
                    "total": event.get("steps"),
                }
                shown = _metrics(event) + _pace(event, "/s")
                if console.width < WIDE and isinstance(event.get("loss"), float):
                    shown = describe("loss", event["loss"])  # the step and the remaining time need the space
                progress.update(task, metrics=shown, **fields)
            elif kind_of(event) == "reference":
                progress.update(task, description="reference", completed=event["done"], total=event["total"])
            elif kind_of(event) == "generated":
                progress.update(task, description=f"answers {event['done']}/{event['total']}")
            elif kind_of(event) == "rollout":
                progress.update(task, description="training")
            elif "doing" in event:
                progress.update(task, description=str(event["doing"]))
            elif text := describe_event(event):
                progress.console.print(f"  {text}", highlight=False, markup=False)
    return None
