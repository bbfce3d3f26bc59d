"""`mmlaunch convert`: Write the rows of one data format as rows of another."""

from __future__ import annotations

import json
from typing import Any

import click

from mmlaunch.cli import options
from mmlaunch.cli.left_out import show_left_out
from mmlaunch.submit import run_task

EXAMPLES = """
\b
Examples:
  mmlaunch convert MMBench_DEV_EN.tsv --to prompts mmbench.jsonl
  mmlaunch convert train.json --images data/images --to trl pairs.jsonl --drop label
  mmlaunch convert pairs.parquet --from rlaif_v --to internvl mmpr/meta.json
  mmlaunch convert predictions.jsonl --to vlmevalkit llava_MMStar.tsv --on-bad skip
"""
DROPS = ("answers", "scores", "images", "turns", "label", "truths", "followups", "rows")


@click.command(epilog=EXAMPLES)
@options.rows
@click.argument("output", type=click.Path())
@click.option("--to", required=True, metavar="FORMAT", help="The format to write; mmlaunch data --formats shows all.")
@click.option(
    "--drop", multiple=True, type=click.Choice(DROPS),
    help="Write rows without what the format cannot hold: their surplus answers, scores, ... `rows` leaves out rows "
    "that still do not fit. Everything that is dropped is counted.",
)  # fmt: skip
@click.option("--absolute", is_flag=True, help="Write all image paths in full. Default: those beside OUTPUT are short.")
@click.option(
    "--truths-as-answers", is_flag=True, help="Rows without an answer get the first that the data call right."
)
@options.overwrite
@options.as_json
def command(
    input: str, output: str, format: str, images: str | None, split: str | None, on_bad: str, to: str,
    drop: tuple[str, ...], absolute: bool, truths_as_answers: bool, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write the rows of INPUT to OUTPUT in another format: .jsonl, .json, or .tsv for vlmevalkit.

    What the format cannot hold is refused with its row and reason, unless --drop names it. Images keep their files;
    those that stand in the rows themselves become files beside OUTPUT.
    """
    arguments = [*options.row_arguments(format, images, split, on_bad, overwrite), f"--to={to}"]
    arguments += [f"--drop={part}" for part in drop]
    arguments += ["--absolute"] if absolute else []
    arguments += [*(["--truths-as-answers"] if truths_as_answers else []), "--", input, output]
    result = run_task.run("mmjobs.tasks.convert", arguments, needs=("PIL", "numpy"))
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"{output}: {result['rows']:,} rows of the {result['to']} format, from {input} ({result['from']})")
    if result["dropped"]:
        click.echo("dropped: " + ", ".join(f"{part} of {count:,} rows" for part, count in result["dropped"].items()))
    show_left_out(result)
    if made := result["images"]["made"]:
        click.echo(f"images: {made:,} files written beside it")
    click.echo(f"next: {{path: {output}, format: {result['to']}{_images(result)}}} in a recipe's data")


def _images(result: dict[str, Any]) -> str:
    """What a recipe says of the images, where the format needs it."""
    from mmlaunch.recipe.data import FORMATS

    paths = result["images"]
    if not FORMATS[result["to"]].image_folder:
        return ""
    if paths["short"] and paths["full"]:
        click.echo(f"images: some lie outside of {paths['folder']}; with --absolute, images: / holds all of them")
    return f", images: {paths['folder'] if paths['short'] else '/' if paths['full'] else 'none'}"
