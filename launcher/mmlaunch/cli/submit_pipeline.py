"""What `mmlaunch submit` does with a pipeline: it checks and submits all stages, and says what will happen."""

from __future__ import annotations

import json
from functools import partial

import click

from mmlaunch.cli.columns import show
from mmlaunch.cli.graph import drawn, others
from mmlaunch.load.pipeline import load_pipeline
from mmlaunch.schedulers import choose
from mmlaunch.submit.pipeline import PreparedPipeline, Selection, submit_pipeline


def submit(
    path: str, overrides: tuple[str, ...], cluster: str | None, selection: Selection, follow: bool, as_json: bool
) -> None:
    """Submit a pipeline, and say what was submitted."""
    loaded = load_pipeline(path, overrides, partial(choose.misfits, cluster))
    whole = submit_pipeline(loaded, cluster, selection)
    if as_json:
        click.echo(json.dumps(_record(whole)))
    else:
        _say(whole, follow)
    if follow and whole.new:
        from mmlaunch.cli.follow_pipeline import follow as stay

        raise SystemExit(stay(whole.run))


def _record(whole: PreparedPipeline) -> dict[str, object]:
    stages = [
        {"stage": one.name, "run": one.run.name, "directory": str(one.run.root), "reused": one.prepared is None}
        for one in whole.stages
    ]
    name, root = (whole.run.name, str(whole.run.root)) if whole.new else (None, None)
    return {"run": name, "directory": root, "cluster": whole.cluster_name, "stages": stages}


def _say(whole: PreparedPipeline, follow: bool) -> None:
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
    if not whole.new:
        click.echo("nothing to do: every stage has a finished run of the same content")
    elif not follow:
        click.echo(f"next: mmlaunch status {whole.run.name}")
