"""`mmlaunch chat`: Talk with a trained model, about images too."""

from __future__ import annotations

from pathlib import Path

import click

from mmlaunch.cli import options
from mmlaunch.errors import UserError
from mmlaunch.load import find_model
from mmlaunch.submit import run_task


@click.command(
    epilog="\b\nExamples:\n  mmlaunch chat dpo-llama3-8b\n"
    "  mmlaunch chat dpo-llama3-8b --image cat.jpg --image dog.jpg\n"
    "  mmlaunch chat exports/dpo --temperature 0.7 --top-p 0.9\n"
    "  echo 'What is this?' | mmlaunch chat dpo-llama3-8b --image cat.jpg"
)
@click.argument("model", metavar="RUN", shell_complete=options.run_names)
@click.option("--image", multiple=True, metavar="FILE", help="Show this image with the first message; may be repeated.")
@click.option("--system", metavar="TEXT", help="What the system says before the conversation.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: the likeliest answer."
)
@click.option(
    "--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=1.0, show_default=True,
    help="Only the likeliest tokens that have this probability together.",
)  # fmt: skip
@click.option("--top-k", type=click.IntRange(min=1), help="Only the k likeliest tokens.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="The longest answer, in tokens.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws, where the temperature is not 0.")
def command(
    model: str,
    image: tuple[str, ...],
    system: str | None,
    temperature: float,
    top_p: float,
    top_k: int | None,
    max_new_tokens: int,
    seed: int,
) -> None:
    """Talk with RUN: a run (its newest checkpoint), a checkpoint, an export, or any Hugging Face directory.

    /image FILE shows an image with the next message, /reset begins anew, /help lists the commands. In a pipe, each line
    of the input is a message, and nothing but the answers is printed.
    """
    if missing := [path for path in image if not Path(path).expanduser().is_file()]:
        raise UserError(f"--image: no such file: {', '.join(missing)}")
    arguments = [find_model.named(model), "--temperature", str(temperature), "--top-p", str(top_p)]
    arguments += ["--max-new-tokens", str(max_new_tokens), "--seed", str(seed)]
    arguments += [word for path in image for word in ("--image", path)]
    arguments += ["--top-k", str(top_k)] if top_k is not None else []
    arguments += ["--system", system] if system is not None else []
    raise SystemExit(run_task.interact("mmjobs.tasks.chat", arguments))
