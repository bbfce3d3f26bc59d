"""Prints which rows a command on data left out, and why."""

from __future__ import annotations

from typing import Any

import click


def show_left_out(result: dict[str, Any]) -> None:
    """The counts, and the first rows with their reasons."""
    if not result["left_out"]:
        return
    click.echo("left out: " + ", ".join(f"{count:,} {why}" for why, count in result["left_out"].items()))
    for one in result["reasons"]:
        click.echo(f"  {one['row']}: {one['reason']}")
    if (more := sum(result["left_out"].values()) - len(result["reasons"])) > 0:
        click.echo(f"  ... and {more:,} more")
