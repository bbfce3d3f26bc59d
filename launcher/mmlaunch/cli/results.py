"""`mmlaunch results`: What came of predict, evaluate, score and the makers of preference data."""

from __future__ import annotations

import json

import click

from mmlaunch.cli import options
from mmlaunch.load import rundir
from mmlaunch.results.merge import Merged, merge
from mmlaunch.run.paths import RunPaths

TOO_MANY_FAILED = 1


@click.command(
    epilog="\b\nExamples:\n  mmlaunch results predict-llama3-8b\n  mmlaunch results last --json | jq .failed"
)
@options.run(many=False)
@options.as_json
def command(run: str, as_json: bool) -> None:
    """Merge the records of all shards of RUN into one file, exactly one for each row, and show what they say.

    The exit code is 1 if more rows have failed than objective.max_failed allows.
    """
    raise SystemExit(show(rundir.resolve(run), as_json))


def show(run: RunPaths, as_json: bool = False) -> int:
    """Merge and show; returns the exit code."""
    merged = merge(run)
    if as_json:
        click.echo(json.dumps(_record(run, merged), indent=2))
    else:
        _say(merged)
    return TOO_MANY_FAILED if merged.too_many_failed else 0


def _record(run: RunPaths, merged: Merged) -> dict[str, object]:
    made = {"made": str(merged.made), "made_rows": merged.made_rows} if merged.made else {}
    return {
        "run": run.name, "output": str(merged.output), "rows": merged.rows, "failed": dict(merged.failed), **made,
        "counts": dict(merged.notes), "too_many_failed": merged.too_many_failed,
    }  # fmt: skip


def _say(merged: Merged) -> None:
    click.echo(f"{merged.output}: {merged.rows:,} records")
    if merged.made is not None:
        click.echo(f"{merged.made}: {merged.made_rows:,} rows")
    for what, count in sorted(merged.notes.items()):
        click.echo(f"  {count:,} {what}")
    if merged.failed:
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in merged.failed.most_common())
        limit = f", more than objective.max_failed allows ({merged.allowed:.1%})" if merged.too_many_failed else ""
        click.secho(f"{merged.failed.total():,} rows failed: {reasons}{limit}", fg="red" if limit else "yellow")
