"""`mmlaunch split`: Divide rows in parts that share no image and no question."""

from __future__ import annotations

import json

import click

from mmlaunch.cli import options
from mmlaunch.cli.columns import show
from mmlaunch.cli.left_out import show_left_out
from mmlaunch.submit import run_task

EXAMPLES = """
\b
Examples:
  mmlaunch split pairs.jsonl parts --parts train=90,test=10
  mmlaunch split train.json parts --images data/images --parts train=8,valid=1,test=1 --seed 7
"""


@click.command(epilog=EXAMPLES)
@options.rows
@click.argument("output", type=click.Path())
@click.option("--parts", required=True, metavar="NAME=SHARE,...", help="The parts and their shares, in any unit.")
@click.option(
    "--by", type=click.Choice(["both", "images", "questions"]), default="both", show_default=True,
    help="What no two parts may share. Rows that ask one question of all images can be parted by images alone.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses who goes where; the same gives the same.")
@options.overwrite
@options.as_json
def command(
    input: str, output: str, format: str, images: str | None, split: str | None, on_bad: str, parts: str, by: str,
    seed: int, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Divide the rows of INPUT into files of the folder OUTPUT, every field as it was.

    Rows that share an image (the same bytes, whatever the file is called) or the words of a question stay together,
    and so do rows that are joined by others. So parts may be a little larger or smaller than their shares.
    """
    arguments = [*options.row_arguments(format, images, split, on_bad, overwrite), f"--parts={parts}", f"--by={by}"]
    arguments += [f"--seed={seed}", "--", input, output]
    result = run_task.run("mmjobs.tasks.split", arguments, needs=("PIL", "numpy"))
    if as_json:
        click.echo(json.dumps(result))
        return
    total = sum(part["rows"] for part in result["parts"].values())
    rows = [
        [name, f"{part['rows']:,}", f"{100 * part['rows'] / total:.1f} %", f"{part['groups']:,}", part["file"]]
        for name, part in result["parts"].items()
    ]
    show(("part", "rows", "share", "groups", "file"), rows)
    click.echo(f"the largest group of rows that share something has {result['largest']:,}")
    show_left_out(result)
    click.echo(f"next: name a file in a recipe's data, with format: {result['format']}, images: {result['images']}")
