"""`mmlaunch render`: Print the job script that submit would use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from mmlaunch.cli import options
from mmlaunch.load import load_recipe
from mmlaunch.load.recipe import is_pipeline
from mmlaunch.recipe.resolved import text_of
from mmlaunch.schedulers import choose
from mmlaunch.submit import secrets
from mmlaunch.submit.prepare import Prepared, prepare

if TYPE_CHECKING:
    from mmlaunch.submit.pipeline import Selection


@click.command(
    epilog="\b\nExamples:\n  mmlaunch render recipes/dpo_llama3.yaml --cluster slurm\n"
    "  mmlaunch render my.yaml --what deepspeed\n  mmlaunch render my.yaml | bash -n"
)
@options.recipe()
@options.overrides
@options.cluster
@click.option(
    "--what",
    type=click.Choice(["script", "deepspeed", "recipe"]),
    default="script",
    show_default=True,
    help="The job script, the DeepSpeed configuration, or the recipe with all its defaults.",
)
def command(recipe: str, overrides: tuple[str, ...], cluster: str | None, what: str) -> None:
    """Print exactly the bytes that submit would use for RECIPE, of a pipeline for all stages. Nothing is written."""
    render(recipe, overrides, cluster, what)


def render(
    recipe: str, overrides: tuple[str, ...], cluster: str | None, what: str, selection: Selection | None = None
) -> None:
    """Print one of the texts of a recipe, or of the selected stages of a pipeline: all of them, if None."""
    also = partial(choose.misfits, cluster)
    if not is_pipeline(recipe):
        _print(prepare(load_recipe(recipe, overrides, also), cluster), what)
        return
    from mmlaunch.load.pipeline import load_pipeline  # a single recipe does not wait for all of this
    from mmlaunch.submit import pipeline

    chosen = selection or pipeline.Selection()
    whole = pipeline.prepare_pipeline(load_pipeline(recipe, overrides, also), cluster, chosen)
    show_all([(stage.name, prepared) for stage, prepared in whole.new], what)


def show_all(runs: Sequence[tuple[str, Prepared]], what: str = "script") -> None:
    """Print one of the texts of several runs, each with its stage if it has one."""
    for stage, prepared in runs:
        if stage:
            click.echo(f"##### stage {stage}: {prepared.plan.run.name}")
        _print(prepared, what)


def _print(prepared: Prepared, what: str) -> None:
    plan = prepared.plan
    texts = {
        "script": lambda: prepared.texts.script,
        "deepspeed": lambda: prepared.texts.deepspeed,
        "recipe": lambda: text_of(plan.recipe),
    }
    text = texts[what]()
    secrets.refuse({f"the {what}": text}, secrets.values_here(plan.passed))
    click.echo(text, nl=False)
