"""`mmlaunch results`: What came of predict, evaluate, score and the makers of preference data."""

from __future__ import annotations

import json
from typing import Any

import click

from mmlaunch.cli import columns, options
from mmlaunch.load import find_run
from mmlaunch.results.merge import Merged, Record, merge
from mmlaunch.results.page import page
from mmlaunch.results.pictures import source_of
from mmlaunch.results.samples import Samples
from mmlaunch.results.summary import Evaluation
from mmlaunch.results.table import tables
from mmlaunch.run.files import publish
from mmlaunch.run.paths import RunPaths

TOO_MANY_FAILED = 1
SAMPLES = 20


@click.command(
    epilog="\b\nExamples:\n  mmlaunch results eval-llama3-8b\n  mmlaunch results eval-llama3-8b --samples 50\n"
    "  mmlaunch results last --json | jq .evaluation.by_source"
)
@options.run(many=False)
@click.option(
    "--samples", type=click.IntRange(min=0), default=SAMPLES, show_default=True,
    help="Rows of each source and kind that the page shows.",
)  # fmt: skip
@options.as_json
def command(run: str, samples: int, as_json: bool) -> None:
    """Merge the records of all shards of RUN into one file, exactly one for each row, and show what they say.

    Where answers have scores, evaluation.json and the page evaluation.html are written beside it. The exit code is 1 if
    more rows have failed than objective.max_failed allows.
    """
    raise SystemExit(show(find_run.resolve_whole(run, "results"), samples, as_json))


def show(run: RunPaths, most: int = SAMPLES, as_json: bool = False) -> int:
    """Merge and show; returns the exit code."""
    merged, evaluation = evaluated(run, most)
    if as_json:
        click.echo(json.dumps(_record(run, merged, evaluation), indent=2))
    else:
        _say(run, merged, evaluation)
    return TOO_MANY_FAILED if merged.too_many_failed else 0


def evaluated(run: RunPaths, most: int = SAMPLES) -> tuple[Merged, Evaluation]:
    """Merge the records of a task, and write what they come to."""
    evaluation, samples = Evaluation(), Samples(most)

    def look(record: Record) -> None:
        if "scores" in record or "metric" in record:
            samples.add(record, evaluation.add(record))

    merged = merge(run, look)
    if evaluation.rows:
        publish(run.evaluation, json.dumps(evaluation.as_json(), indent=1) + "\n")
        publish(
            run.root / "evaluation.html",
            page(run.name, evaluation, samples, lambda path: source_of(str(run.root / path))),
        )
    return merged, evaluation


def _record(run: RunPaths, merged: Merged, evaluation: Evaluation) -> dict[str, Any]:
    made = {"made": str(merged.made), "made_rows": merged.made_rows} if merged.made else {}
    evaluated = {"evaluation": evaluation.as_json()} if evaluation.rows else {}
    return {
        "run": run.name, "output": str(merged.output), "rows": merged.rows, "failed": dict(merged.failed), **made,
        "counts": dict(merged.notes), "too_many_failed": merged.too_many_failed, **evaluated,
    }  # fmt: skip


def _say(run: RunPaths, merged: Merged, evaluation: Evaluation) -> None:
    for table in tables(evaluation) if evaluation.rows else ():
        click.secho(table.title, bold=True)
        columns.show(table.head, table.rows)
        click.echo()
    click.echo(f"{merged.output}: {merged.rows:,} records")
    if merged.made is not None:
        click.echo(f"{merged.made}: {merged.made_rows:,} rows")
    if evaluation.rows:
        click.echo(f"{run.root / 'evaluation.html'}: the tables, and rows with their images")
    for what, count in sorted(merged.notes.items()):
        click.echo(f"  {count:,} {what}")
    if merged.failed:
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in merged.failed.most_common())
        limit = f", more than objective.max_failed allows ({merged.allowed:.1%})" if merged.too_many_failed else ""
        rows = "1 row" if merged.failed.total() == 1 else f"{merged.failed.total():,} rows"
        click.secho(f"{rows} failed: {reasons}{limit}", fg="red" if limit else "yellow")
