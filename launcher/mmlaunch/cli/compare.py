"""`mmlaunch compare`: Which of two runs judges pairs better, and whether that is chance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from mmlaunch.cli import options
from mmlaunch.cli.columns import show
from mmlaunch.errors import UserError
from mmlaunch.load import find_run
from mmlaunch.recipe import resolved
from mmlaunch.recipe.check import section_of
from mmlaunch.recipe.data import Source
from mmlaunch.run.paths import RunPaths
from mmlaunch.submit import run_task

EXAMPLES = """
\b
Examples:
  mmlaunch compare sft-llama3-8b dpo-llama3-8b
  mmlaunch compare dpo-llama3-8b mdpo-llama3-8b --data data/rlaif-v-test --limit 500
  mmlaunch compare rm-llama3-8b last --data data/pairs.json --format mdpo --images data/images
"""


@click.command(epilog=EXAMPLES)
@click.argument("first", metavar="RUN_A", shell_complete=options.run_names)
@click.argument("second", metavar="RUN_B", shell_complete=options.run_names)
@click.option("--data", multiple=True, metavar="PATH", help="Pairs to judge. Without it: the data.eval of RUN_A.")
@click.option("--format", metavar="NAME", help="The format of --data, as in a recipe. Without it: it is recognised.")
@click.option("--images", metavar="DIR", help="The folder that the image paths of --data are relative to; or none.")
@click.option("--split", metavar="NAME", help="The split of --data, if it is a Hugging Face data set.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Not more rows than this of each data set.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Examples at a time.")
@options.as_json
def command(
    first: str,
    second: str,
    data: tuple[str, ...],
    format: str | None,
    images: str | None,
    split: str | None,
    limit: int | None,
    batch: int,
    as_json: bool,
) -> None:
    """Let RUN_A and RUN_B judge the same pairs: which of the first two answers of a row is the better one.

    Each run judges as its newest valid checkpoint: a reward run by its scores, any other by the log-probability of
    each answer, summed over its tokens, so longer answers are less likely. Rows that one of the runs cannot
    use are left out for both.

    Accuracies can always be compared. Margins cannot where one run has scores and the other log-probabilities: their
    scales differ. A preference run is judged by its own log-probabilities, not by their ratio to those of its
    reference, even where these are stored in the run: so they differ from the accuracy and margin in its curves.
    """
    paths = [find_run.resolve(run) for run in (first, second)]
    given = {"format": format, "images": images, "split": split}
    sources = _sources(paths[0], data, {key: value for key, value in given.items() if value is not None}, limit)
    for line in _announced(paths, sources, named=bool(data) or given["format"] == "shapes"):
        click.echo(line, err=True)
    described = json.dumps([source.model_dump(mode="json", exclude_none=True) for source in sources])
    arguments = [*(str(path.root) for path in paths), described, "--batch", str(batch)]
    result = run_task.run("mmjobs.tasks.compare", arguments, of_run=None if data else paths[0].root)
    if as_json:
        click.echo(json.dumps(result))
    else:
        _show(result)


def _sources(run: RunPaths, data: tuple[str, ...], options: dict[str, Any], limit: int | None) -> list[Source]:
    limited = {} if limit is None else {"limit": limit}
    if data:
        return [section_of(Source, {"path": path, **options, **limited}) for path in data]
    if options.get("format") == "shapes":  # generated, not read from files
        return [section_of(Source, {**options, **limited})]
    if options:
        raise UserError(f"--{next(iter(options))} is about data that are not named; add --data PATH")
    held_out = resolved.read(run.resolved).data.eval
    if not held_out:
        raise UserError(f"{run.name} has no evaluation data; name pairs to judge with --data PATH")
    return [
        source if limit is None else source.model_copy(update={"limit": min(limit, source.limit or limit)})
        for source in held_out
    ]


def _announced(runs: list[RunPaths], sources: list[Source], named: bool) -> Iterator[str]:
    """Which data both runs are about to judge, before anything takes time."""
    held_out = [resolved.read(run.resolved).data.eval for run in runs]
    whose = "as named" if named else f"the data.eval of A, {runs[0].name}"
    yield f"both judge {', '.join(map(_called, sources))} ({whose})"
    if not named and held_out[0] != held_out[1]:
        theirs = ", ".join(map(_called, held_out[1])) or "none"
        yield f"  B, {runs[1].name}, was evaluated on other data: {theirs}; --data PATH chooses"


def _called(source: Source) -> str:
    name = source.path or source.format
    return name + (f" (at most {source.limit:,} rows)" if source.limit is not None else "")


def _show(result: dict[str, Any]) -> None:
    a, b, difference = result["a"], result["b"], result["difference"]
    rows = []
    for letter, one in (("A", a), ("B", b)):
        right = f"{one['right']:g}/{result['pairs']}"
        accuracy = f"{_percent(one['accuracy'])} {_between(*map(_percent, one['accuracy_interval']))}"
        margin = _number(one["margin"]) + (
            f" {_between(*map(_number, one['margin_interval']))}" if one["margin_interval"] else ""
        )
        rows.append((letter, one["run"], str(one["step"]), one["judges_by"], right, accuracy, margin))
    show(("", "run", "step", "judges by", "right", "accuracy (95 %)", "mean margin (95 %)"), rows)
    click.echo("intervals: accuracy by Wilson, margin by the normal approximation, difference by a paired bootstrap")
    if a["judges_by"] != b["judges_by"]:
        click.echo("margins of scores and of log-probabilities are on different scales")
    if ties := a["ties"] + b["ties"]:
        click.echo(f"equal answers count as half right: {ties:,}")
    if result["left"]:
        counts = ", ".join(f"{count:,} {why}" for why, count in result["left"].items())
        click.echo(f"\nleft out for both: {counts}")
        for one in result["reasons"]:
            click.echo(f"  {one['row']}: {one['reason']}")
    points = [f"{100 * value:+.1f}" for value in (difference["accuracy"], *difference["interval"])]
    click.echo(f"\nB - A       {points[0]} points of accuracy {_between(*points[1:])} over {result['pairs']:,} pairs")
    click.echo(
        f"only right  A {difference['only_a']:,}, B {difference['only_b']:,} (sign test: p = {difference['p']:.2g})"
    )
    click.echo(click.style(_verdict(difference), bold=True))


def _verdict(difference: dict[str, Any]) -> str:
    if not difference["only_a"] and not difference["only_b"]:
        return "A and B judge every pair alike"
    if not difference["beyond_chance"]:
        return "the difference is not beyond chance: more pairs may tell A and B apart"
    return f"the difference is beyond chance: {'B' if difference['accuracy'] > 0 else 'A'} is right more often"


def _between(low: str, high: str) -> str:
    return f"({low} to {high})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _number(value: float) -> str:
    return f"{value:.4g}"
