"""`mmlaunch export`: Write a checkpoint as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import click

from mmlaunch.cli import options
from mmlaunch.errors import UserError
from mmlaunch.load import find_run
from mmlaunch.recipe import resolved
from mmlaunch.recipe.push_to import PushTo
from mmlaunch.recipe.scalars import HUB_NAME
from mmlaunch.run import manifest, shards
from mmlaunch.run.paths import RunPaths
from mmlaunch.submit import run_task

CARD, ADAPTER = "recipe.yaml", "adapter"
"""What stands in every export, and in that of an adapter."""
EXAMPLES = """
\b
Examples:
  mmlaunch export sft-llama3-8b
  mmlaunch export sft-llama3-8b --to models/sft
  mmlaunch export dpo-llama3-8b --to models/dpo --checkpoint 300 --merge-lora
  mmlaunch export dpo-llama3-8b --merge-lora --push my-lab/dpo-llama3-8b
"""


@click.command(epilog=EXAMPLES)
@options.run(many=False)
@click.option(
    "--to", type=click.Path(path_type=Path), help="A folder that does not exist yet. Default: exports/RUN-step-STEP."
)
@click.option("--checkpoint", type=int, metavar="STEP", help="Export this checkpoint. Default: the newest valid one.")
@click.option(
    "--merge-lora", is_flag=True, help="Merge the adapters into the weights. Default: write them beside the weights."
)
@click.option(
    "--push", is_flag=False, flag_value="", metavar="[ORG/NAME]",
    help="Send it to this repository of the Hugging Face hub, or to the recipe's push_to; a new one is private.",
)  # fmt: skip
@click.option("--public", is_flag=True, help="With --push: everybody may read a new repository.")
@click.option("--no-processor", is_flag=True, help="Leave out what prepares images: you serve them with your own code.")
def command(
    run: str,
    to: Path | None,
    checkpoint: int | None,
    merge_lora: bool,
    no_processor: bool,
    push: str | None,
    public: bool,
) -> None:
    """Write a checkpoint of RUN as a Hugging Face directory: weights, processor, chat template, model card.

    --push sends it to the hub as well; if the folder exists already, it sends what is there.
    """
    paths = find_run.resolve_whole(run, "results")
    if shards.is_task(paths):
        raise UserError(f"{paths.name} trains nothing, and has no weights; mmlaunch results {paths.name}")
    if to is None:
        checkpoint = _newest(paths) if checkpoint is None else checkpoint
        to = Path("exports") / f"{paths.name}-step-{checkpoint}"
    own = resolved.read(paths.resolved).push_to if push is not None else None
    repository = _repository(own, push) if push is not None else None
    changed = merge_lora or no_processor
    if own is not None:
        public, merge_lora = public or own.public, merge_lora or own.merge_lora
    if repository is not None and (to / CARD).is_file():
        if changed:
            raise UserError(f"{to} exists already, and --push sends it as it is; name a new folder with --to")
        _push(to, repository, public)
        return
    if to.exists() or to.is_symlink():
        raise UserError(f"{to} exists already; name a folder that does not")
    arguments = [str(paths.root), str(to)]
    arguments += ["--checkpoint", str(checkpoint)] if checkpoint is not None else []
    arguments += ["--merge-lora"] if merge_lora else []
    arguments += ["--no-processor"] if no_processor else []
    result = run_task.run("mmjobs.tasks.export", arguments)
    click.echo(f"{to}: {paths.name}, step {result['step']}")
    if repository is not None:
        _push(to, repository, public)
        return
    reads = f"{result['kind']}.from_pretrained({str(to)!r})"
    if (to / ADAPTER).is_dir():
        reads = f"PeftModel.from_pretrained({reads}, {str(to / ADAPTER)!r}): the adapter stands beside its base"
    click.echo(f"next: a recipe with model.init_from: {to}, or {reads}")


def _repository(own: PushTo | None, written: str) -> str:
    """The repository that was named, or that of the recipe."""
    name = written or (own.repository if own is not None else None)
    if name is None:
        raise UserError("--push: no repository is named; write --push ORG/NAME, or push_to: ORG/NAME in the recipe")
    if HUB_NAME.fullmatch(name) is None:
        raise UserError(f"--push: {name!r} is no name of a repository; write ORG/NAME")
    return name


def _push(folder: Path, repository: str, public: bool) -> None:
    arguments = [str(folder), repository, *(["--public"] if public else [])]
    result = run_task.run("mmjobs.tasks.push", arguments, needs=("huggingface_hub",))
    click.echo(f"{folder}: sent to {result['url']}")


def _newest(run: RunPaths) -> int:
    """The step of the newest checkpoint that is whole; the export itself reads its contents."""
    newest, rejected = manifest.newest(run.checkpoints, contents=False)
    if newest is None:
        raise UserError(f"{run.name} has no valid checkpoint ({'; '.join(rejected) or 'none was ever saved'})")
    return newest.step
