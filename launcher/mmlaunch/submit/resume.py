"""Continues a run that has ended from its newest checkpoint, perhaps with more steps or on other resources."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from mmlaunch.errors import MachineError, UserError
from mmlaunch.load import find_run, plugins
from mmlaunch.load.cluster import Cluster
from mmlaunch.load.overrides import apply
from mmlaunch.load.recipe import Loaded, validated
from mmlaunch.load.text import read_file
from mmlaunch.monitor import status
from mmlaunch.monitor.state import Status
from mmlaunch.recipe.check import recipe_of, section_of
from mmlaunch.recipe.resolved import text_of
from mmlaunch.restart import causes, log_patterns
from mmlaunch.run import ledger, owner
from mmlaunch.run.exits import CANCELLED, JobExit
from mmlaunch.run.files import READ_ONLY, explained, publish
from mmlaunch.run.ledger import Event, Events
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose, process
from mmlaunch.schedulers.base import PerhapsSubmitted
from mmlaunch.submit import plan as plans
from mmlaunch.submit import secrets, snapshot, stages, submission
from mmlaunch.submit.create_run import EXECUTABLE, submitter
from mmlaunch.submit.prepare import Prepared, Texts
from mmlaunch.submit.render import Renderer

PATIENCE = 600.0
"""Seconds for a submission on another host, whose process cannot be looked at."""


def resume(name: str, overrides: Sequence[str], cluster_name: str | None, held: bool | None = None) -> Prepared:
    """Submit a run again in its own directory, with the code it was first submitted with.

    A stage whose needs are not done is submitted `held`, and so is any stage of a pipeline that is resumed as a whole.
    """
    run = find_run.resolve(name)
    events = ledger.skim(run.events)  # before the state: whatever is submitted later, `own` notices
    now = status.of(run, whole=True)
    if not now.final and now.state != "lost":
        raise UserError(f"{run.name} is {now.state}; mmlaunch cancel {run.name} first")
    if now.state == "done" and not overrides:
        raise UserError(
            f"{run.name} is done; to train on: mmlaunch resume {run.name} -s steps={2 * (now.steps or 500)}"
        )
    prepared = prepare_again(run, overrides, cluster_name)
    submission.check_here(prepared)
    _check(prepared, now, overrides)
    values = secrets.values(prepared.plan.passed)
    attempt = len(events.all("started")) + 1
    number = own(run, events)
    try:
        with explained("cannot write into the run directory"):
            write(prepared, attempt, values)
            owner.check(run, number)
            close_open(run, now, events)
            held = stages.must_wait(run) if held is None else held
            ledger.append(run.events, "submitted", **prepared.plan.facts, **stages.facts(run, held), submission=number)
    except BaseException:
        owner.release(run, number)
        raise
    _launch(prepared, attempt, number, held)
    return prepared


def _launch(prepared: Prepared, attempt: int, number: int, held: bool) -> None:
    try:
        submission.launch(prepared.plan, attempt, number, held=held)
    except PerhapsSubmitted:
        raise
    except MachineError as error:
        facts = {"state": "failed", "reason": str(error), "exit_code": error.exit_code}
        ledger.append(prepared.plan.run.events, "ended", **facts)
        raise


def close_open(run: RunPaths, now: Status, events: Events) -> None:
    """Write the end of a submission that could not write it itself: its job is gone, and only its scheduler says so."""
    if events.of_this_submission.last("ended") is not None:
        return
    shown = log_patterns.weigh(run.attempt(now.attempt)) if now.attempt and now.state != causes.CANCELLED else None
    cause = shown.cause if shown else now.state
    reason = str(shown) if shown else now.reason or "its job was gone and had left no word"
    state, code = ("cancelled", CANCELLED) if now.state == causes.CANCELLED else ("failed", int(JobExit.STOP))
    facts = {"state": state, "cause": cause, "reason": reason, "exit_code": code, "by": "resume"}
    ledger.append(run.events, "ended", **facts)


def own(run: RunPaths, seen: Events) -> int:
    """Make this submission the owner of the run, if nobody else is about to submit it; returns its number.

    `seen` is the ledger by which the run had ended.
    """
    last = owner.newest(run)
    submitted = _submitted(run)
    if len(submitted) != len(seen.all("submitted")):
        raise UserError(f"{run.name} was resumed by someone else at this moment: mmlaunch status {run.name}")
    if last and all(event.get("submission") != last for event in submitted):
        _check_given_up(run, last, len(submitted))
    number = max(last, len(submitted)) + 1
    if not owner.take(run, number, **submitter()):
        raise UserError(f"{run.name} is being resumed by someone else at this moment: mmlaunch status {run.name}")
    return number


def _check_given_up(run: RunPaths, number: int, submissions: int) -> None:
    """Refuse if a submission that has its number, and is not in the ledger yet, is still at work."""
    facts = owner.read(run, number)
    alive, seconds = process.alive(facts), time.time() - float(facts.get("time", 0))
    if alive or (alive is None and seconds < PATIENCE):
        who = f"{facts.get('by', 'someone')} on {facts.get('host', '?')}"
        raise UserError(f"{run.name} is being resumed by {who} (since {seconds:.0f} s): mmlaunch status {run.name}")
    if len(_submitted(run)) != submissions:
        raise UserError(f"{run.name} was resumed by someone else at this moment: mmlaunch status {run.name}")


def _submitted(run: RunPaths) -> list[Event]:
    return ledger.skim(run.events).all("submitted")


def _check(prepared: Prepared, now: Status, overrides: Sequence[str]) -> None:
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
    begun = next((text for text in overrides if text.startswith(("precision=", "name="))), None)
    if begun is not None and now.saved_step is not None:
        right = f"start a new run with -s model.init_from={prepared.plan.run.root}"
        raise UserError(f"{begun}: {name} began with another, and keeps it; {right}")


def prepare_again(run: RunPaths, overrides: Sequence[str], cluster_name: str | None) -> Prepared:
    """The plan of a run that exists, with a changed recipe."""
    node = apply(read_file(run.resolved), overrides)
    loaded = Loaded(validated(node, recipe_of), run.recipe, node, tuple(overrides))
    profile, cluster = _profile(run, cluster_name)
    where = json.loads(run.environment.read_text(encoding="utf-8"))
    plan = plans.make(loaded.recipe, cluster, profile, run, Path(where["folder"]))
    beside = plan.folder / Path(where["recipe"]).parent
    renderer = Renderer(beside)
    return Prepared(loaded, plan, Texts(renderer.script(plan), renderer.deepspeed(plan)), beside)


def _profile(run: RunPaths, name: str | None) -> tuple[str, Cluster]:
    """The profile that is named, or the run's own as it was when the run was submitted."""
    last = ledger.skim(run.events).last("submitted") or {}
    if name is None and run.profile.exists():
        kept = validated(read_file(run.profile), lambda data: section_of(Cluster, data))
        return str(last.get("cluster", run.profile)), kept
    return choose.profile_here(name or last.get("cluster"))


def write(prepared: Prepared, attempt: int, values: dict[str, str]) -> None:
    """Write the new attempt's files and the changed recipe; the recipe before it is kept beside it."""
    run, texts, resolved = prepared.plan.run, prepared.texts, text_of(prepared.plan.recipe)
    own = plugins.files(prepared.plan.recipe, prepared.plugin_folders)
    secrets.refuse({"the job script": texts.script, "the recipe": resolved, **own}, values)
    paths = run.attempt(attempt)
    for folder in (paths.logs, paths.stacks):
        folder.mkdir(parents=True, exist_ok=True)
    publish(run.profile, prepared.plan.cluster.model_dump_json(indent=1, exclude_defaults=True) + "\n")
    publish(paths.script, texts.script, EXECUTABLE)
    publish(paths.deepspeed, texts.deepspeed)
    snapshot.plugins(run, own)
    before = run.resolved.read_text(encoding="utf-8")
    if before != resolved:
        publish(run.resolved_before(attempt), before, READ_ONLY)
        publish(run.resolved, resolved, READ_ONLY)
