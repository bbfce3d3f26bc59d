"""`mmlaunch render`: Print the job script that submit would use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmlaunch.cli import options
from mmlaunch.errors import UserError
from mmlaunch.load import load_recipe
from mmlaunch.load.recipe import is_pipeline
from mmlaunch.recipe.resolved import text_of
from mmlaunch.run.files import explained, publish
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose
from mmlaunch.submit import secrets
from mmlaunch.submit.prepare import Prepared, prepare

if TYPE_CHECKING:
    from mmlaunch.submit.pipeline import Selection

EXECUTABLE, READABLE = 0o755, 0o644


@click.command(
    epilog="\b\nExamples:\n  mmlaunch render recipes/dpo_llama3.yaml --cluster slurm\n"
    "  mmlaunch render my.yaml --what deepspeed\n  mmlaunch render my.yaml | bash -n\n"
    "  mmlaunch render my.yaml --cluster slurm --to rendered"
)
@options.recipe()
@options.overrides
@options.cluster
@click.option(
    "--what",
    type=click.Choice(["script", "deepspeed", "recipe"]),
    help="The job script (without this option), the DeepSpeed configuration, or the recipe with all its defaults.",
)
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write all three into this folder instead; of a pipeline, those of each stage into a folder of its name.",
)
@options.overwrite
def command(
    recipe: str,
    overrides: tuple[str, ...],
    cluster: str | None,
    what: str | None,
    folder: Path | None,
    overwrite: bool,
) -> None:
    """Print exactly the bytes that submit would use for RECIPE, of a pipeline for all stages.

    Nothing is written, unless --to names a folder.
    """
    if folder is None:
        render(recipe, overrides, cluster, what or "script")
        return
    if what is not None:
        raise click.UsageError("--to writes all texts; leave out --what")
    write_all(_prepared(recipe, overrides, cluster), folder, overwrite)


def render(
    recipe: str, overrides: tuple[str, ...], cluster: str | None, what: str, selection: Selection | None = None
) -> None:
    """Print one of the texts of a recipe, or of the selected stages of a pipeline: all of them, if None."""
    show_all(_prepared(recipe, overrides, cluster, selection), what)


def _prepared(
    recipe: str, overrides: tuple[str, ...], cluster: str | None, selection: Selection | None = None
) -> list[tuple[str, Prepared]]:
    """A recipe without a stage, or the selected stages of a pipeline by their names."""
    also = partial(choose.misfits, cluster)
    if not is_pipeline(recipe):
        return [("", prepare(load_recipe(recipe, overrides, also), cluster))]
    from mmlaunch.load.pipeline import load_pipeline  # a single recipe does not wait for all of this
    from mmlaunch.submit import pipeline

    chosen = selection or pipeline.Selection()
    whole = pipeline.prepare_pipeline(load_pipeline(recipe, overrides, also), cluster, chosen)
    return [(stage.name, prepared) for stage, prepared in whole.new]


def show_all(runs: Sequence[tuple[str, Prepared]], what: str = "script") -> None:
    """Print one of the texts of several runs, each with its stage if it has one."""
    for stage, prepared in runs:
        if stage:
            click.echo(f"##### stage {stage}: {prepared.plan.run.name}")
        _print(prepared, what)


def _text(prepared: Prepared, what: str) -> str:
    """One text of a run, without any secret."""
    plan = prepared.plan
    texts = {
        "script": lambda: prepared.texts.script,
        "deepspeed": lambda: prepared.texts.deepspeed,
        "recipe": lambda: text_of(plan.recipe),
    }
    text = texts[what]()
    secrets.refuse({f"the {what}": text}, secrets.values_here(plan.passed))
    return text


def _print(prepared: Prepared, what: str) -> None:
    click.echo(_text(prepared, what), nl=False)


def write_all(runs: Sequence[tuple[str, Prepared]], folder: Path, overwrite: bool) -> None:
    """Write the texts of several runs into a folder, under the names that they have in a run directory."""
    files: dict[Path, str] = {}
    for stage, prepared in runs:
        names = RunPaths(folder / stage)
        files[folder / stage / names.attempt(1).script.name] = _text(prepared, "script")
        files[folder / stage / names.attempt(1).deepspeed.name] = _text(prepared, "deepspeed")
        files[folder / stage / names.resolved.name] = _text(prepared, "recipe")
    if there := [path for path in files if path.exists() and not overwrite]:
        raise UserError(f"{there[0]}: exists already; choose another folder, or add --overwrite")
    with explained(f"cannot write into {folder}"):
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            publish(path, text, EXECUTABLE if path.suffix == ".sh" else READABLE)
    for path in files:
        click.echo(path)
