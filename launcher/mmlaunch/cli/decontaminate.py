"""`mmlaunch decontaminate`: Remove the rows that a test set has too."""

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
  mmlaunch decontaminate train.jsonl --against MMStar.tsv --output clean.jsonl
  mmlaunch decontaminate train.json --images data/images --against test.json=data/test --output clean.json
  mmlaunch decontaminate pairs.jsonl --against a.tsv --against b.tsv --compare perceptual --output clean.jsonl
"""


@click.command(epilog=EXAMPLES)
@options.rows
@click.option(
    "--against", multiple=True, required=True, metavar="TEST[=IMAGES]",
    help="A test set in any format, perhaps with the folder of its images. May be given several times.",
)  # fmt: skip
@click.option("--output", required=True, type=click.Path(), help="The file of the rows that are kept.")
@click.option(
    "--ngram", type=click.IntRange(min=1), default=13, show_default=True,
    help="So many words in the same order are too many; each Chinese character is a word. Shorter questions are "
    "compared as a whole, with their answers.",
)  # fmt: skip
@click.option(
    "--compare", type=click.Choice(["none", "exact", "perceptual"]), default="exact", show_default=True,
    help="How images are compared: by the bytes of their files, or also by how they look, at any size and quality.",
)  # fmt: skip
@click.option(
    "--distance", type=click.IntRange(0, 32), default=8, show_default=True,
    help="Of the 128 bits of how an image looks, so many may differ.",
)  # fmt: skip
@click.option(
    "--report", type=click.Path(), help="JSON lines of what was removed. Default: OUTPUT's name, .removed.jsonl."
)
@options.overwrite
@options.as_json
def command(
    input: str, format: str, images: str | None, split: str | None, on_bad: str, against: tuple[str, ...],
    output: str, ngram: int, compare: str, distance: int, report: str | None, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Copy the rows of INPUT that share nothing with test sets, every field as it was.

    A row is removed when its question or one of its answers has the words of a test row, or when it shows its image.
    """
    arguments = options.row_arguments(format, images, split, on_bad, overwrite)
    arguments += [f"--ngram={ngram}", f"--compare={compare}", f"--distance={distance}"]
    arguments += [*(f"--against={one}" for one in against), *([f"--report={report}"] if report else [])]
    result = run_task.run("mmjobs.tasks.decontaminate", [*arguments, "--", input, output], needs=("PIL", "numpy"))
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"{output}: {result['kept']:,} of {result['rows']:,} rows kept, {result['removed']:,} removed")
    removed = {(one["against"], one["why"]): one["rows"] for one in result["by"]}
    whys = ("words", "text", "image", "similar image")
    rows = [
        [one["name"], f"{one['rows']:,}", *(f"{removed.get((one['name'], why), 0):,}" for why in whys)]
        for one in result["against"]
    ]
    show(("against", "its rows", *whys), rows)
    show_left_out(result)
    click.echo(f"next: less {result['report']} shows which row, against which set, and why")
