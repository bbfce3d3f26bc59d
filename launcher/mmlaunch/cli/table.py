"""`mmlaunch table`: Compare the points of a sweep, or several runs; name the best."""

from __future__ import annotations

import csv
import json
import sys

import click

from mmlaunch.cli import options
from mmlaunch.cli.columns import show
from mmlaunch.load import find_run
from mmlaunch.monitor import gains, table
from mmlaunch.monitor.table import Row, Table


@click.command(
    epilog="\b\nExamples:\n  mmlaunch table dpo-sweep\n  mmlaunch table dpo-sweep --metric eval/loss\n"
    "  mmlaunch table dpo-a dpo-b --csv > runs.csv"
)
@options.run()
@click.option("--metric", metavar="NAME", help="What to compare by. Default: the recipe's checkpoint.best.")
@click.option("--csv", "as_csv", is_flag=True, help="All metrics, as comma-separated values.")
@options.as_json
def command(run: tuple[str, ...], metric: str | None, as_csv: bool, as_json: bool) -> None:
    """A row for each point of a sweep (or each RUN): its values, its state, what it measured; the best is named."""
    whole = table.of([find_run.resolve_any(name) for name in run], metric)
    if as_json:
        best = whole.best.name if whole.best else None
        rows = [row.as_json() for row in whole.rows]
        click.echo(json.dumps({"metric": whole.metric, "best": best, "rows": rows}, indent=2))
    elif as_csv:
        _write(whole)
    else:
        _say(whole)


def _fields(whole: Table) -> list[str]:
    return list(dict.fromkeys(field for row in whole.rows for field in row.values))


def _say(whole: Table) -> None:
    fields = _fields(whole)
    rows = [_row(row, fields, whole) for row in whole.rows]
    show(["point", *fields, "state", "step", whole.metric, ""], rows)
    if whole.best is not None:
        values = " ".join(f"{name}={value}" for name, value in whole.best.values.items())
        shown = gains.shown(whole.metric, whole.best.metrics[whole.metric])
        click.echo(f"best: {whole.best.name} ({values or whole.best.now.run}), {whole.metric} {shown}")
        click.echo(f"next: mmlaunch export {whole.best.now.run}")


def _row(row: Row, fields: list[str], whole: Table) -> list[str]:
    steps = f"{row.now.step or 0}/{row.now.steps}" if row.now.steps else str(row.now.step or "")
    measured = gains.shown(whole.metric, row.metrics[whole.metric]) if whole.metric in row.metrics else ""
    own = [row.values.get(field, "") for field in fields]
    return [row.name, *own, row.now.shown_state, steps, measured, "best" if row == whole.best else ""]


def _write(whole: Table) -> None:
    fields = _fields(whole)
    metrics = sorted({name for row in whole.rows for name in row.metrics})
    out = csv.writer(sys.stdout)
    out.writerow(["point", "run", *fields, "state", "step", *metrics])
    for row in whole.rows:
        own = [row.values.get(field, "") for field in fields]
        out.writerow([row.name, row.now.run, *own, row.now.state, row.now.step, *map(row.metrics.get, metrics)])
