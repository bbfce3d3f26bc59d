"""`mmlaunch doctor`: What this site can and cannot do for runs."""

from __future__ import annotations

import json

import click

from mmlaunch.cli import options
from mmlaunch.monitor import doctor


@click.command(epilog="\b\nExamples:\n  mmlaunch doctor\n  mmlaunch doctor --json | jq '.[] | select(.good | not)'")
@options.as_json
def command(as_json: bool) -> None:
    """Check what this machine and its scheduler can do for runs. Exit code 1 when something will not work."""
    findings = doctor.examine()
    if as_json:
        click.echo(json.dumps([finding.as_json() for finding in findings], indent=2))
    else:
        for finding in findings:
            mark = click.style("ok  ", fg="green") if finding.good else click.style("look", fg="yellow", bold=True)
            click.echo(f"{mark}  {finding.what}{f': {finding.means}' if finding.means else ''}")
    raise SystemExit(0 if all(finding.good for finding in findings) else 1)
