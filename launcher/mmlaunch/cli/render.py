"""`mmlaunch render`: Print the job script that submit would use."""

from __future__ import annotations

from functools import partial

import click

from mmlaunch.cli import options
from mmlaunch.load import load_recipe
from mmlaunch.recipe.resolved import text_of
from mmlaunch.schedulers import choose
from mmlaunch.submit import secrets
from mmlaunch.submit.prepare import prepare


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
    """Print exactly the bytes that submit would use for RECIPE. Nothing is written."""
    prepared = prepare(load_recipe(recipe, overrides, partial(choose.misfits, cluster)), cluster)
    plan = prepared.plan
    texts = {
        "script": lambda: prepared.texts.script,
        "deepspeed": lambda: prepared.texts.deepspeed,
        "recipe": lambda: text_of(plan.recipe),
    }
    text = texts[what]()
    secrets.refuse({f"the {what}": text}, secrets.values_here(plan.passed))
    click.echo(text, nl=False)
