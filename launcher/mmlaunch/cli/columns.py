"""Prints tables: coloured columns in a terminal, aligned text without tabs in a pipe."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence

import click


def show(head: Sequence[str], rows: Sequence[Sequence[str]], colour_of_second: Sequence[str] = ()) -> None:
    """Print rows under their headings. In a narrow terminal, the last column gets lines of its own."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    terminal = sys.stdout.isatty()
    edge = shutil.get_terminal_size().columns if terminal else 10_000
    narrow = sum(widths) + 2 * (len(widths) - 1) > edge
    first = head[:-1] if narrow else head
    click.echo(click.style(_line(first, widths)[:edge], bold=True))
    for index, row in enumerate(rows):
        line = _line(row[: len(first)], widths)[:edge]
        colour = colour_of_second[index] if index < len(colour_of_second) else ""
        if terminal and colour:
            start = widths[0] + 2
            end = start + len(row[1])
            line = line[:start] + click.style(line[start:end], fg=colour) + line[end:]
        click.echo(line)
        if narrow and row[-1]:
            click.echo(f"  {head[-1]}: {row[-1]}")


def wrapped(text: str, indent: int = 2) -> str:
    """A text that breaks between words where a terminal ends; as it is in a pipe."""
    if not sys.stdout.isatty():
        return text
    edge = max(shutil.get_terminal_size().columns, 40)
    following = " " * indent
    lines = textwrap.wrap(
        text, edge, subsequent_indent=following, break_long_words=False, break_on_hyphens=False, drop_whitespace=False
    )
    return "\n".join(line.rstrip() for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)).rstrip()
