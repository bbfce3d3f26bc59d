"""`mmlaunch import-config`: Write a configuration of TRL, LLaMA-Factory or InternVL as a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from mmlaunch.cli import options
from mmlaunch.errors import UserError
from mmlaunch.load.imports.convert import Imported, imported
from mmlaunch.load.imports.trl import METHODS
from mmlaunch.run.files import explained, publish

EXAMPLES = """
\b
Examples:
  mmlaunch import-config dpo_vlm.yaml -o my_dpo.yaml
  mmlaunch import-config examples/train_lora/llama3_lora_sft.yaml --nodes 1 --gpus 4
  mmlaunch import-config internvl2_5_8b_mpo.sh | less
"""


@click.command("import-config", epilog=EXAMPLES)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT.yaml", help="Default: print it.")
@click.option("--nodes", type=click.IntRange(min=1), help="How many nodes it ran on. Default: what FILE says, or 1.")
@click.option("--gpus", type=click.IntRange(min=1), help="GPUs of a node. Default: what FILE says, or 8.")
@click.option("--method", type=click.Choice(METHODS), help="What TRL trains, where FILE does not say it.")
@options.overwrite
def command(
    file: Path, output: Path | None, nodes: int | None, gpus: int | None, method: str | None, overwrite: bool
) -> None:
    """Read FILE, a configuration of TRL, LLaMA-Factory or InternVL, and write it as a recipe with comments.

    FILE may be YAML, JSON, a shell script with the command, or Python that calls TRL's DPOConfig. Values that FILE
    leaves to its tool are written out. What is a guess is marked; what no recipe can hold stays in it as a comment.
    """
    if output is not None and output.exists() and not overwrite:
        raise UserError(f"{output}: exists already; choose another name, or add --overwrite")
    made = imported(file, nodes, gpus, method)
    if output is None:
        click.echo(made.text, nl=False)
    else:
        with explained(f"cannot write {output}"):
            publish(output, made.text)
    _say(file, output, made)


def _say(file: Path, output: Path | None, made: Imported) -> None:
    """What was recognised, what is left to do: to standard error, since the recipe may be on standard output."""
    click.echo(f"{file}: {click.style(made.tool, bold=True)} ({made.kind})", err=True)
    if made.guesses:
        click.echo(f"  {made.guesses} guess{'es' if made.guesses > 1 else ''} to look at", err=True)
    if made.left_out:
        several = "s" if made.left_out > 1 else ""
        click.echo(f"  {made.left_out} argument{several} not taken over; they stand at the end as comments", err=True)
    for problem in made.problems:
        click.echo(click.style(f"  to mend: {problem.dotted}: {problem.what}; {problem.right}", fg="yellow"), err=True)
    name = output or "OUT.yaml"
    click.echo(f"next: mmlaunch {'validate' if output else f'import-config {file} -o'} {name}", err=True)
