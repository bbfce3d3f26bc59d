"""`mmlaunch init`: Write a first recipe and a cluster profile for this site."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from mmlaunch.errors import MmlaunchError, RecipeError, UserError
from mmlaunch.load import load_recipe
from mmlaunch.load.cluster import problems
from mmlaunch.monitor import doctor
from mmlaunch.recipe.scalars import format_duration, parse_duration
from mmlaunch.run.files import explained, publish
from mmlaunch.schedulers import choose
from mmlaunch.schedulers.base import Partition
from mmlaunch.submit.first_files import KINDS, USUAL_TIME, Answers, profile_text, recipe_text

PROFILE = "cluster.yaml"
SMALL_MODEL, USUAL_MODEL = "HuggingFaceTB/SmolVLM-256M-Instruct", "llava-hf/llava-1.5-7b-hf"
T = TypeVar("T")

EXAMPLES = """
\b
Examples:
  mmlaunch init
  mmlaunch init my_project --yes
  mmlaunch init my_project --method dpo --model Qwen/Qwen2.5-VL-7B-Instruct --data data/pairs.jsonl --nodes 2
"""


class Questions:
    """Asks, unless an option has the answer or all defaults are taken."""

    def __init__(self, yes: bool) -> None:
        self.yes = yes

    def ask(self, given: T | None, text: str, default: T, kind: Any = None) -> T:
        """The answer to one question."""
        if given is not None:
            return given
        if self.yes:
            return default
        answer: T = click.prompt(text, default=default, type=kind, show_choices=True)
        return answer


@click.command(epilog=EXAMPLES)
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option("--method", type=click.Choice(list(KINDS)), help="What the run learns.")
@click.option("--model", metavar="NAME", help="A Hugging Face name or a folder.")
@click.option("--train", type=click.Choice(["lora", "full"]), help="Adapters, or all weights of the language model.")
@click.option("--data", metavar="PATH", help="The file of the training data.")
@click.option("--name", metavar="NAME", help="The name of the run; the recipe is called after it.")
@click.option("--executor", type=click.Choice(choose.names()), help="What starts jobs here.")
@click.option("--partition", metavar="NAME", help="The partition that jobs go to.")
@click.option("--account", metavar="NAME", help="The account that is charged; empty for none.")
@click.option("--nodes", type=click.IntRange(min=1), help="How many nodes.")
@click.option("--gpus", type=click.IntRange(min=0), help="GPUs of a node.")
@click.option("--gpu-memory", metavar="SIZE", help="Of one GPU, as it is sold: 80G; empty where you do not know.")
@click.option("--time", "limit", metavar="TIME", help="The time limit of a job: 24:00:00, 30m.")
@click.option("-y", "--yes", is_flag=True, help="Ask nothing: take the defaults.")
def command(folder: Path, yes: bool, **given: Any) -> None:
    """Ask a few questions, and write a recipe and a cluster profile into DIR (default: here).

    The defaults come from what mmlaunch doctor finds on this machine: its partitions, their GPUs and time limits. Both
    files are checked, and no file is overwritten.
    """
    questions = Questions(yes)
    executor, site = _site(questions, given)
    answers = _answers(questions, given, executor, site)
    files = {
        folder / f"{answers.name}.yaml": recipe_text(answers),
        folder / PROFILE: profile_text(answers, site),
    }
    if there := [path for path in files if path.exists()]:
        raise UserError(f"{there[0]}: exists already; choose another folder, or another --name")
    with explained(f"cannot write into {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            publish(path, text)
    _check(*files)
    _say(*files)


def _site(questions: Questions, given: dict[str, Any]) -> tuple[str, Partition | None]:
    """What starts jobs here, and the partition that they go to."""
    usual = next(one.name for one in choose.all_schedulers() if one.is_here())
    executor = questions.ask(given["executor"], "What starts jobs here?", usual, click.Choice(choose.names()))
    partitions = doctor.partitions(executor)
    named = [one for one in partitions if one.name]
    if not named:
        if given["partition"]:  # the scheduler does not answer: believe the user
            return executor, Partition(given["partition"], gpus=given["gpus"] or 0)
        return executor, partitions[0] if partitions else None
    for one in named if not questions.yes else ():
        click.echo(f"  {one.name}: {_described(one)}")
    usual_one = max(named, key=lambda one: (one.gpus > 0, one.is_default, one.gpus))
    wanted = questions.ask(given["partition"], "Which partition?", usual_one.name)
    chosen = next((one for one in named if one.name == wanted), None)
    if chosen is None:
        raise UserError(
            f"--partition: there is no {wanted!r} here; write one of {', '.join(one.name for one in named)}"
        )
    return executor, chosen


def _described(one: Partition) -> str:
    """`16 nodes with 8 a100, at most 24h (default)`."""
    gpus = f" with {one.gpus} {one.gpu_type or 'GPUs'}" if one.gpus else " without GPUs"
    limit = f", at most {format_duration(one.max_time)}" if one.max_time else ""
    return f"{one.nodes} node{'s' if one.nodes != 1 else ''}{gpus}{limit}{' (default)' if one.is_default else ''}"


def _answers(questions: Questions, given: dict[str, Any], executor: str, site: Partition | None) -> Answers:
    """The answers to all questions but the first two."""
    ask, queued = questions.ask, bool(site and site.name)
    account = ask(given["account"], "Which account is charged? (empty: none)", "") if queued else given["account"] or ""
    nodes = ask(given["nodes"], "How many nodes?", 1, click.IntRange(min=1)) if queued else given["nodes"] or 1
    gpus = ask(given["gpus"], "How many GPUs of each node?", site.gpus if site else 0, click.IntRange(min=0))
    known = site.gpu_memory if site else ""
    memory = ask(given["gpu_memory"], "Memory of one GPU? (80G; empty: not known)", known) if gpus else ""
    method = ask(given["method"], "What does the run learn?", "sft", click.Choice(list(KINDS)))
    model = ask(given["model"], "Which model?", USUAL_MODEL if gpus else SMALL_MODEL)
    train = ask(given["train"], "Adapters or all weights?", "lora", click.Choice(["lora", "full"]))
    data = ask(given["data"], f"Where are the data? (rows with {KINDS[method].rows})", "data/train.json")
    name = ask(given["name"], "What is the run called?", _name(method, model))
    longest = min(USUAL_TIME, site.max_time or USUAL_TIME) if site else USUAL_TIME
    limit = ask(given["limit"], "Time limit of a job?", format_duration(longest))
    return Answers(
        name=name, method=method, model=model, train=train, data=data, nodes=nodes, gpus=gpus,
        time=_option("--time", lambda: parse_duration(limit)), executor=executor,
        partition=site.name if site else "", account=account, gpu_memory=memory,
    )  # fmt: skip


def _option(name: str, read: Callable[[], T]) -> T:
    """A value of the schema, with its mistake as that of an option."""
    from pydantic_core import PydanticCustomError

    try:
        return read()
    except PydanticCustomError as error:
        raise UserError(f"{name}: {error.message()}; {(error.context or {}).get('right', '')}") from None


def _name(method: str, model: str) -> str:
    """`dpo-llava-1.5-7b-hf`"""
    short = re.sub(r"[^a-z0-9._-]+", "-", model.rstrip("/").rpartition("/")[2].lower()).strip("-._")
    return f"{method}-{short or 'model'}"[:79]


def _check(recipe: Path, profile: Path) -> None:
    """What `mmlaunch validate` would say; files with a mistake are taken away again, so that init can be repeated."""
    try:
        _, cluster = choose.profile(str(profile))
        loaded = load_recipe(recipe)
        own = [
            *choose.named(cluster.executor).misfits(loaded.recipe.resources),
            *problems(cluster, loaded.recipe.resources),
        ]
        if own:
            raise loaded.placed(own)
    except RecipeError:
        recipe.unlink(missing_ok=True)
        profile.unlink(missing_ok=True)
        raise


def _say(recipe: Path, profile: Path) -> None:
    """What was written, what doctor warns of, and what to type next."""
    click.echo(f"{recipe}: the recipe")
    click.echo(f"{profile}: the cluster profile")
    for finding in _warnings():
        click.echo(click.style(f"  look: {finding}", fg="yellow"))
    click.echo(f"  to rehearse it here, with tiny models and without data: mmlaunch submit {recipe} --toy --follow")
    click.echo(f"next: mmlaunch submit {recipe} --cluster {profile}")


def _warnings() -> Sequence[str]:
    try:
        bad = [one for one in doctor.examine() if not one.good]
    except MmlaunchError as error:  # such as a usual profile of the user that is wrong: the new one is right
        return [str(error)]
    return [f"{one.what}{f': {one.means}' if one.means else ''}" for one in bad]
