"""`mmlaunch runs`: List the run directories."""

from __future__ import annotations

import json
import time

import click

from mmlaunch.cli import options
from mmlaunch.cli.columns import show
from mmlaunch.load import rundir
from mmlaunch.monitor import status
from mmlaunch.run import manifest


@click.command(epilog="\b\nExamples:\n  mmlaunch runs\n  mmlaunch runs --json | jq -r '.[0].directory'")
@options.as_json
def command(as_json: bool) -> None:
    """List the run directories, the newest first."""
    folder = rundir.runs_folder()
    records = []
    for run in rundir.all_runs(folder):
        submitted = status.first_event(run, "submitted")
        records.append(
            {
                "run": run.name,
                "method": submitted.get("method"),
                "submitted": submitted.get("time"),
                "cluster": submitted.get("cluster"),
                "ranks": submitted.get("ranks"),
                "checkpoints": manifest.steps(run.checkpoints),
                "directory": str(run.root),
            }
        )
    if as_json:
        click.echo(json.dumps(records, indent=2))
        return
    if not records:
        click.echo(f"no runs in {folder}; next: mmlaunch submit recipes/quickstart.yaml --follow")
        return
    rows = [
        [
            str(r["run"]),
            str(r["method"] or "?"),
            _date(r["submitted"]),
            str(r["cluster"] or "?"),
            str(r["ranks"] or "?"),
            _steps(r["checkpoints"]),
        ]
        for r in records
    ]
    show(["run", "method", "submitted", "cluster", "ranks", "checkpoints"], rows)
    click.echo(f"in {folder}")


def _date(when: object) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when)) if isinstance(when, (int, float)) else "?"


def _steps(steps: object) -> str:
    assert isinstance(steps, list)
    shown = ", ".join(str(step) for step in steps[-4:])
    return f"... {shown}" if len(steps) > 4 else shown
