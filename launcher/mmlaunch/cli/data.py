"""`mmlaunch data`: Show a recipe's data as its model gets them, with samples."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from mmlaunch.cli import options
from mmlaunch.cli.columns import show
from mmlaunch.errors import UserError
from mmlaunch.submit import run_task

EXAMPLES = """
\b
Examples:
  mmlaunch data recipes/quickstart.yaml
  mmlaunch data recipes/dpo_llama3.yaml --samples 8 --html samples.html
  mmlaunch data my.yaml --decode -s data.train[0].limit=1000
  mmlaunch data --formats
"""


@click.command(epilog=EXAMPLES)
@options.recipe()
@options.overrides
@click.option(
    "--formats", is_flag=True, is_eager=True, expose_value=False, callback=lambda *given: _formats(*given),
    help="Show one row of each data format, and stop.",
)  # fmt: skip
@click.option("--samples", type=click.IntRange(min=0), default=3, show_default=True, help="Examples to show.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the samples to a page, with their images.")
@click.option("--decode", is_flag=True, help="Decode every image: finds those that are damaged behind their header.")
@options.as_json
def command(
    recipe: str, overrides: tuple[str, ...], samples: int, html: Path | None, decode: bool, as_json: bool
) -> None:
    """Show the data of RECIPE as its model gets them: rows, tokens, image sizes, skipped rows, and samples."""
    from mmlaunch.load import load_recipe
    from mmlaunch.recipe.resolved import text_of

    if html is not None and not html.absolute().parent.is_dir():
        raise UserError(f"--html: there is no folder {html.absolute().parent}")
    loaded = load_recipe(recipe, overrides)
    text = text_of(loaded.recipe)
    with tempfile.TemporaryDirectory() as folder:
        resolved = Path(folder) / "recipe.yaml"
        resolved.write_text(text, encoding="utf-8")
        arguments = [str(resolved), "--samples", str(samples)]
        arguments += ["--html", str(html)] if html else []
        arguments += ["--decode"] if decode else []
        result = run_task.run("mmjobs.tasks.inspect_data", arguments, beside=loaded.path.parent)
    refused = loaded.recipe.data.on_bad == "error" and any(
        part["left"].get("bad") for parts in result["groups"].values() for part in parts
    )
    if as_json:
        click.echo(json.dumps(result))
        raise SystemExit(BAD if refused else 0)
    _sources(result)
    for one in result.get("samples", ()):
        _sample(one)
    if html is not None:
        click.echo(f"next: open {html} in a browser")
    if refused:
        click.echo("a run would stop at these rows: mend them, or write data.on_bad: skip", err=True)
        raise SystemExit(BAD)


BAD = UserError.exit_code
"""Where a run would refuse the data."""


def _formats(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """One row of each format, as it stands in a file."""
    if not wanted or context.resilient_parsing:
        return
    from mmlaunch.recipe.data import FORMATS

    for name, kind in FORMATS.items():
        if kind.example:
            click.echo(f"{click.style(name, bold=True)}\n  {kind.example}")
    click.echo("\nimage paths begin in the folder of the source's images:, or beside the file; bytes and base64 do too")
    context.exit()


def _sources(result: dict[str, Any]) -> None:
    rows = []
    for group, parts in result["groups"].items():
        for part in parts:
            usable = f"{part['usable']:,}" + (f" x {part['repeat']:g}" if part["repeat"] != 1 else "")
            cells = [part["name"], group, f"{part['rows']:,}", usable]
            rows.append([*cells, *(_told(part[key]) for key in ("answers", "tokens", "images", "width", "height"))])
    show(("source", "for", "rows", "usable", "answers", "tokens", "images", "width", "height"), rows)
    click.echo("numbers are least / median / 99th percentile / most; tokens are those of a prompt and all its answers")
    for parts in result["groups"].values():
        for part in parts:
            if part["left"]:
                counts = ", ".join(f"{count:,} {why}" for why, count in part["left"].items())
                click.echo(f"\n{part['name']}: left out {counts}")
                for one in part["reasons"]:
                    click.echo(f"  {one['row']}: {one['reason']}")
    if "examples" in result:
        fill = result.get("fill")
        packed = f"; packed rows are {100 * fill:.0f} % full" if fill is not None else ""
        click.echo(f"\n{result['examples']:,} examples an epoch{packed}")


def _sample(one: dict[str, Any]) -> None:
    click.echo(click.style(f"\n{one['origin']}", bold=True) + click.style(f"  pixels {one['pictures']}", dim=True))
    click.echo("".join(_piece(*piece) for piece in one["prompt"]))
    for name, answer, score in zip(one["names"], one["answers"], one["scores"], strict=True):
        score = f" (score {score:g})" if score is not None else ""
        click.echo(click.style(f"{name}{score}: ", bold=True) + "".join(_piece(*piece) for piece in answer))


def _piece(text: str, learnt: bool, kind: str) -> str:
    colour = {"special": "yellow", "images": "blue"}.get(kind)
    return click.style(text, fg=colour or ("green" if learnt else None), underline=learnt)


def _told(spread: dict[str, int] | None) -> str:
    if spread is None:
        return "-"
    if spread["min"] == spread["max"]:
        return f"{spread['min']:,}"
    return " / ".join(f"{spread[key]:,}" for key in ("min", "median", "p99", "max"))
