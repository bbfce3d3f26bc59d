"""`mmlaunch submit`: Start a run from a recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from mmlaunch.cli import options
from mmlaunch.cli.columns import wrapped
from mmlaunch.errors import RecipeError
from mmlaunch.load import Loaded, load_recipe
from mmlaunch.load.cluster import gigabytes
from mmlaunch.load.recipe import is_pipeline
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.inference import Inference
from mmlaunch.schedulers import choose
from mmlaunch.submit.pipeline import Selection
from mmlaunch.submit.plan import Plan
from mmlaunch.submit.prepare import Prepared
from mmlaunch.submit.secrets import too_short
from mmlaunch.submit.submission import submit


@click.command(
    epilog="\b\nExamples:\n  mmlaunch submit recipes/quickstart.yaml --follow\n"
    "  mmlaunch submit recipes/dpo_llama3.yaml -s optim.lr=1e-6 -s resources.nodes=2\n"
    "  mmlaunch submit my.yaml --cluster local\n  mmlaunch submit recipes/rlhf_llama3.yaml --until reward\n"
    "  mmlaunch submit my.yaml -s optim.lr=1e-6,5e-7 -s seed=1..3 --sweep\n"
    "  mmlaunch submit recipes/ppo_llama3.yaml --toy --follow"
)
@options.recipe()
@options.overrides
@options.cluster
@click.option("-f", "--follow", is_flag=True, help="Stay and show progress; Ctrl-C leaves the run running.")
@click.option("--from", "first", metavar="STAGE", help="Of a pipeline: this stage and those that need it.")
@click.option("--until", "last", metavar="STAGE", help="Of a pipeline: this stage and those that it needs.")
@click.option("--only", metavar="STAGE", help="Of a pipeline: this stage alone.")
@click.option("--sweep", is_flag=True, help="A run for every combination of the values that -s lists: 1,2 or 1..3.")
@click.option("--at-once", type=click.IntRange(min=1), help="Of a sweep: so many points run at the same time at most.")
@click.option(
    "--halving",
    type=click.IntRange(min=2),
    metavar="N",
    help="Of a sweep: all points train a little, one in N goes on, and so again up to all steps.",
)
@click.option("--toy", is_flag=True, help="Rehearse it here: tiny random models, generated data, a few steps, on CPU.")
@click.option("--dry-run", is_flag=True, help="Check everything and print the job scripts; nothing is written.")
@options.as_json
def command(
    recipe: str,
    overrides: tuple[str, ...],
    cluster: str | None,
    follow: bool,
    first: str | None,
    last: str | None,
    only: str | None,
    sweep: bool,
    at_once: int | None,
    halving: int | None,
    toy: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Start a run from RECIPE and return at once. With --follow, the exit code is that of the run.

    A recipe with stages is a pipeline: all stages are checked, and each begins once those that it needs are done.
    Stages of the same content that are done already are not run again. With --sweep, a value of -s may be a list, and
    each combination is a run; mmlaunch table compares them. With --toy, the whole recipe is rehearsed with tiny models
    of the same classes and generated data of the same formats, every other field kept, before it queues for a day.
    """
    if as_json and follow:
        raise click.UsageError("--json and --follow write to the same place; use mmlaunch status --json instead")
    selection = Selection(first, last, only)
    if toy:
        if sweep or at_once or halving:
            raise click.UsageError("--toy rehearses one recipe; leave out --sweep and its lists of values")
        _rehearse(recipe, overrides, cluster, selection, follow, dry_run, as_json)
        return
    if choose.profile(cluster)[1].host is not None:
        from mmlaunch.cli.submit_remote import submit as submit_there

        submit_there(recipe, overrides, cluster, sweep, _loaded)
    if sweep:
        from mmlaunch.cli.submit_pipeline import sweep as submit_points

        submit_points(recipe, overrides, cluster, at_once, halving, follow, as_json, dry_run)
        return
    if at_once or halving:
        raise click.UsageError("--at-once and --halving are of a sweep: add --sweep")
    if dry_run:
        from mmlaunch.cli.render import render

        render(recipe, overrides, cluster, "script", selection)
        return
    if is_pipeline(recipe):
        from mmlaunch.cli.submit_pipeline import submit as submit_all

        submit_all(recipe, overrides, cluster, selection, follow, as_json)
        return
    _no_stages(recipe, selection)
    _done(submit(_loaded(recipe, overrides, cluster), cluster), follow, as_json)


def _no_stages(recipe: str, selection: Selection) -> None:
    if selection != Selection():
        raise click.UsageError(f"--from, --until and --only choose stages of a pipeline, and {recipe} is one recipe")


def _rehearse(
    recipe: str,
    overrides: tuple[str, ...],
    cluster: str | None,
    selection: Selection,
    follow: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Submit a recipe or a pipeline as a toy."""
    from mmlaunch.cli import submit_toy

    if not is_pipeline(recipe):
        _no_stages(recipe, selection)
    where = cluster or submit_toy.CLUSTER
    made = submit_toy.toy_of(recipe, overrides, where)
    if dry_run:
        from mmlaunch.cli.render import show_all

        submit_toy.say(made)
        show_all(submit_toy.prepared(made, where, selection))
        return
    if not as_json:
        submit_toy.say(made)
    submitted = submit_toy.submit(made, where, selection)
    if isinstance(submitted, Prepared):
        _done(submitted, follow, as_json)
    else:
        from mmlaunch.cli.submit_pipeline import say as say_stages

        say_stages(submitted, follow, as_json)


def _done(prepared: Prepared, follow: bool, as_json: bool) -> None:
    """Say what was submitted, and stay if the user wants that."""
    if as_json:
        click.echo(json.dumps(_record(prepared)))
    else:
        _say(prepared, follow)
    if follow:
        from mmlaunch.cli.follow import follow as stay

        raise SystemExit(stay(prepared.plan.run))


def _loaded(recipe: str, overrides: tuple[str, ...], cluster: str | None) -> Loaded:
    """The recipe; several values of one field are a sweep, and nothing else."""
    try:
        return load_recipe(recipe, overrides, partial(choose.misfits, cluster))
    except RecipeError as error:
        listed = [f"-s {one}" for one in overrides if "," in one or ".." in one]
        right = "add --sweep for a run of each value"
        raise RecipeError(
            [replace(one, right=right) if one.place in listed else one for one in error.problems]
        ) from None


def _record(prepared: Prepared) -> dict[str, Any]:
    plan = prepared.plan
    return {"run": plan.run.name, "directory": str(plan.run.root), "cluster": plan.cluster_name, "ranks": plan.world}


def _say(prepared: Prepared, follow: bool) -> None:
    from mmlaunch.estimate.start import too_short as too_short_a_time
    from mmlaunch.estimate.summary import line

    plan, recipe = prepared.plan, prepared.plan.recipe
    where = (
        f"partition {plan.partition} (profile {plan.cluster_name})"
        if plan.partition
        else f"profile {plan.cluster_name}"
    )
    click.echo(f"{click.style(plan.run.name, bold=True)}   {plan.size}, {where}")
    sizes, engine = line(recipe, gigabytes(plan.cluster)), recipe.objective.served_by
    path = prepared.loaded.path.resolve()
    elsewhere = {} if path.is_relative_to(Path.cwd()) else {"recipe": str(path)}  # perhaps one that comes with mmlaunch
    rows = {
        **elsewhere,
        **(_model(recipe, sizes) if recipe.objective.READS_MODEL else {}),
        **({"from": "; ".join(prepared.trained.notes)} if prepared.trained and prepared.trained.pinned else {}),
        **(_task(prepared) if plan.sharded else {}),
        **({} if plan.sharded else {"data": describe_data(recipe)}),
        **({} if plan.sharded else {"batch": f"{describe_batch(plan)}; {_length(recipe)}"}),
        **({"starts": text} if (text := _starts(plan)) else {}),
        **({"engine": engine.describe(recipe.resources.gpus_per_node)} if engine is not None else {}),
        **(
            {}
            if plan.sharded
            else {"memory": f"activation checkpointing {'on' if plan.saves[0] else 'off'}: {plan.saves[1]}"}
        ),
        "run": f"{plan.run.root} (others may read it)",
    }
    if hurry := too_short_a_time(recipe, plan.cluster):
        rows["time"] = f"{hurry}: ask for more with -s resources.time=LONGER"
    if short := too_short(plan.passed):
        what = "has a value" if len(short) == 1 else "have values"
        rows["env"] = f"{', '.join(short)} {what} too short to be recognised: keep it out of recipes and code"
    for name, text in rows.items():
        label = f"{name:<8}"
        click.echo(wrapped(f"  {label}  {text}", 12).replace(label, click.style(label, dim=True), 1))
    if not follow:
        click.echo(f"next: mmlaunch status {plan.run.name}    mmlaunch logs -f {plan.run.name}")


def _starts(plan: Plan) -> str:
    """`not before 22:00; when sft-llama3-8b has ended`."""
    wanted = plan.recipe.resources
    parts = [f"not before {wanted.begin}"] if wanted.begin else []
    return "; ".join([*parts, *([f"when {wanted.after} has ended"] if wanted.after else [])])


def _model(recipe: Recipe, sizes: str | None) -> dict[str, str]:
    return {"model": sizes, "parts": describe_model(recipe)} if sizes else {"model": describe_model(recipe)}


def _task(prepared: Prepared) -> dict[str, str]:
    """How the rows of a task are split, and what is made of them."""
    task, definition = prepared.plan.recipe.objective, prepared.definition
    assert isinstance(task, Inference) and definition is not None
    count, wanted = len(definition.ranges), task.shards
    sources = ", ".join(f"{one.name} ({one.rows:,})" for one in definition.inputs)
    parts = f"{count} shard{'s' if count > 1 else ''}" + (f", {task.at_once} at once" if task.at_once else "")
    fewer = f" (not {wanted}: there are only {count} windows of {definition.window} rows)" if count < wanted else ""
    made = f", {task.MADE}" if task.makes_rows else ""
    return {
        "data": f"{definition.rows:,} rows: {sources}",
        "shards": f"{parts}{fewer}, {definition.batch} rows at a time",
        "output": f"{task.OUTPUT}{made}, by mmlaunch results {prepared.plan.run.name}",
    }


def describe_model(recipe: Recipe) -> str:
    """`CLIP (random) + mlp + LLaMA (random); full: vision, projector, language`."""
    model = recipe.model
    if model.pretrained:
        parts = model.pretrained
    else:
        vision = f"{model.vision.path or 'CLIP (random weights)'} + {model.projector.kind} + " if model.vision else ""
        parts = vision + str(model.language.path or "LLaMA (random weights)" if model.language else "")
    ways: dict[str, list[str]] = {}
    for part in ("vision", "projector", "language"):
        ways.setdefault(getattr(model.train, part), []).append(part)
    return f"{parts}; " + "; ".join(f"{way}: {', '.join(names)}" for way, names in ways.items())


def describe_data(recipe: Recipe) -> str:
    """`2 sources (rlaif_v, internvl), 1 for evaluation`."""
    data = recipe.data
    kinds = ", ".join(dict.fromkeys(source.format for source in data.inputs))
    count = len(data.inputs)
    held_out = f", {len(data.eval)} for evaluation" if data.eval else ", none for evaluation"
    return f"{count} source{'s' if count > 1 else ''} ({kinds}){held_out}"


def describe_batch(plan: Plan) -> str:
    """`256 = 32 ranks x 4 examples x 2 passes`."""
    passes = f" x {plan.accumulation} passes" if plan.accumulation > 1 else ""
    return f"{plan.recipe.batch.examples} = {plan.world} ranks x {plan.micro} examples{passes}"


def _length(recipe: Recipe) -> str:
    return f"{recipe.steps} steps" if recipe.steps else f"{recipe.epochs:g} epoch{'s' if recipe.epochs != 1 else ''}"
