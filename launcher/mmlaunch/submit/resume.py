"""Continues a run that has ended from its newest checkpoint, perhaps with more steps or on other resources."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mmlaunch.errors import UserError
from mmlaunch.load import rundir
from mmlaunch.load.overrides import apply
from mmlaunch.load.recipe import Loaded, validated
from mmlaunch.load.text import read_file
from mmlaunch.monitor import status
from mmlaunch.recipe.check import recipe_of
from mmlaunch.recipe.resolved import text_of
from mmlaunch.run import ledger
from mmlaunch.run.files import explained, publish
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose
from mmlaunch.submit import plan as plans
from mmlaunch.submit import secrets, submission
from mmlaunch.submit.create_run import EXECUTABLE, READ_ONLY
from mmlaunch.submit.prepare import Prepared, Texts
from mmlaunch.submit.render import Renderer


def resume(name: str, overrides: Sequence[str], cluster_name: str | None) -> Prepared:
    """Submit a run again in its own directory, with the code it was first submitted with."""
    run = rundir.resolve(name)
    now = status.of(run, whole=True)
    if not now.final and now.state != "lost":
        raise UserError(f"{run.name} is {now.state}; mmlaunch cancel {run.name} first")
    if now.state == "done" and not overrides:
        raise UserError(
            f"{run.name} is done; to train on: mmlaunch resume {run.name} -s steps={2 * (now.steps or 500)}"
        )
    events = ledger.read(run.events)
    prepared = _prepare(run, overrides, cluster_name or (events.last("submitted") or {}).get("cluster"))
    submission.check_here(prepared)
    _check(prepared, now, overrides)
    values = secrets.values(prepared.plan.passed)
    attempt = len(events.all("started")) + 1
    with explained("cannot write into the run directory"):
        _write(prepared, attempt, values)
        ledger.append(run.events, "submitted", **prepared.plan.facts)
    submission.launch(prepared.plan, attempt)
    return prepared


def _check(prepared: Prepared, now: status.Status, overrides: Sequence[str]) -> None:
    """Refuse what cannot continue from the run's checkpoints, before anything is written."""
    steps, name = prepared.plan.recipe.steps, prepared.plan.run.name
    saved = now.saved_step or 0
    if steps is not None and (steps < saved or (steps == saved and now.state == "done")):
        more = f"mmlaunch resume {name} -s steps={2 * saved}"
        raise UserError(f"steps: {steps}, and {name} has done {saved}; to train on: {more}")
    kept = ("model.activation_checkpointing", "model.dropout")
    other = next((text for text in overrides if text.startswith("model") and not text.startswith(kept)), None)
    if other is not None and now.saved_step is not None:
        right = f"start a new run with -s model.init_from={prepared.plan.run.root}"
        raise UserError(f"{other}: the weights of {name} are those of its own model; {right}")


def _prepare(run: RunPaths, overrides: Sequence[str], cluster_name: str | None) -> Prepared:
    node = apply(read_file(run.resolved), overrides)
    loaded = Loaded(validated(node, recipe_of), run.recipe, node, tuple(overrides))
    profile, cluster = choose.profile(cluster_name)
    where = json.loads(run.environment.read_text(encoding="utf-8"))
    plan = plans.make(loaded.recipe, cluster, profile, run, Path(where["folder"]))
    renderer = Renderer(Path(where["recipe"]).parent)
    return Prepared(loaded, plan, Texts(renderer.script(plan), renderer.deepspeed(plan)))


def _write(prepared: Prepared, attempt: int, values: dict[str, str]) -> None:
    """Write the new attempt's files and the changed recipe; the recipe before it is kept beside it."""
    run, texts, resolved = prepared.plan.run, prepared.texts, text_of(prepared.plan.recipe)
    secrets.refuse({"the job script": texts.script, "the recipe": resolved}, values)
    paths = run.attempt(attempt)
    for folder in (paths.logs, paths.stacks):
        folder.mkdir(parents=True, exist_ok=True)
    publish(paths.script, texts.script, EXECUTABLE)
    publish(paths.deepspeed, texts.deepspeed)
    before = run.resolved.read_text(encoding="utf-8")
    if before != resolved:
        publish(run.resolved_before(attempt), before, READ_ONLY)
        publish(run.resolved, resolved, READ_ONLY)
