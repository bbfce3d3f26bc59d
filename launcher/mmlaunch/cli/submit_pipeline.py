"""What `mmlaunch submit` does with a pipeline: it checks and submits all stages, and says what will happen."""

from __future__ import annotations

import json
from functools import partial

import click

from mmlaunch.cli.columns import show
from mmlaunch.cli.graph import drawn, others
from mmlaunch.load.pipeline import load_pipeline
from mmlaunch.load.recipe import is_pipeline
from mmlaunch.schedulers import choose
from mmlaunch.submit.pipeline import PreparedPipeline, Selection, submit_pipeline, submit_prepared
from mmlaunch.submit.sweep import prepare_sweep


def submit(
    path: str, overrides: tuple[str, ...], cluster: str | None, selection: Selection, follow: bool, as_json: bool
) -> None:
    """Submit a pipeline, and say what was submitted."""
    loaded = load_pipeline(path, overrides, partial(choose.misfits, cluster))
    say(submit_pipeline(loaded, cluster, selection), follow, as_json)


def sweep(
    path: str,
    overrides: tuple[str, ...],
    cluster: str | None,
    at_once: int | None,
    halving: int | None,
    follow: bool,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Submit a sweep, or show its points."""
    if is_pipeline(path):
        raise click.UsageError(f"{path} is a pipeline; sweep over one of its recipes")
    whole = prepare_sweep(path, overrides, cluster, at_once, halving)
    if dry_run:
        _points(whole)
        return
    if whole.new:
        submit_prepared(whole)
    say(whole, follow, as_json)


def say(whole: PreparedPipeline, follow: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_record(whole)))
    else:
        (_points if whole.kind == "sweep" else _stages)(whole)
    if not whole.new and not as_json:
        click.echo("nothing to do: all of it has finished runs of the same content")
    elif not follow and not as_json:
        click.echo(f"next: mmlaunch status {whole.run.name}")
    if follow and whole.new:
        from mmlaunch.cli.follow_pipeline import follow as stay

        raise SystemExit(stay(whole.run))


def _points(whole: PreparedPipeline) -> None:
    size = f", {whole.new[0][1].plan.size} each" if whole.new else ""
    done = len(whole.stages) - len(whole.new)
    used = f", {done} done before" if done else ""
    name = whole.run.name if whole.new else whole.loaded.name
    click.echo(f"{click.style(name, bold=True)}   {len(whole.stages)} points{used}{size}, profile {whole.cluster_name}")
    if whole.rungs:
        steps = ", ".join(map(str, whole.rungs))
        click.echo(f"  halving   after {steps} steps; one point in {whole.keep} goes on each time")
    rows = [[f"  {one.name}", " ".join(one.values), one.run.name] for one in whole.stages]
    show(["  point", "values", "run"], rows)


def _record(whole: PreparedPipeline) -> dict[str, object]:
    stages = [
        {"stage": one.name, "run": one.run.name, "directory": str(one.run.root), "reused": one.prepared is None}
        for one in whole.stages
    ]
    name, root = (whole.run.name, str(whole.run.root)) if whole.new else (None, None)
    return {"run": name, "directory": root, "cluster": whole.cluster_name, "stages": stages}


def _stages(whole: PreparedPipeline) -> None:
    done = len(whole.stages) - len(whole.new)
    used = f", {done} done before" if done else ""
    name = whole.run.name if whole.new else whole.loaded.name
    click.echo(f"{click.style(name, bold=True)}   {len(whole.stages)} stages{used}, profile {whole.cluster_name}")
    definition, rows = whole.definition, []
    for line, place in drawn(definition):
        stage = whole.stages[place]
        size = stage.prepared.plan.size if stage.prepared is not None else "done before"
        run = "; ".join(filter(None, (stage.run.name, others(definition, definition.stages[place]))))
        rows.append([f"  {line}", stage.recipe.objective.method, size, run])
    show(["  stage", "method", "size", "run"], rows)
