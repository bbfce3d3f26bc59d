"""What a stage of a pipeline does at its beginning and at its end: it checks what it needs, and releases what needs it.

Both happen on the batch host, in the job script of the stage. Releasing may be repeated: a stage begins once.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mmlaunch.errors import MachineError, MmlaunchError, UserError
from mmlaunch.load import trained
from mmlaunch.load.trained import with_value
from mmlaunch.monitor import status
from mmlaunch.monitor.state import FINAL
from mmlaunch.recipe import resolved
from mmlaunch.recipe.resolved import text_of
from mmlaunch.restart import causes
from mmlaunch.results.merge import merge
from mmlaunch.run import ledger, manifest, owner, pipeline, users
from mmlaunch.run import shards as run_shards
from mmlaunch.run.exits import JobExit
from mmlaunch.run.files import READ_ONLY, publish
from mmlaunch.run.paths import RunPaths
from mmlaunch.run.pipeline import Membership, Stage
from mmlaunch.schedulers import choose
from mmlaunch.submit import shards, waiting_for


class NotReady(MmlaunchError):
    """What a stage needs is not there."""

    exit_code = int(JobExit.STOP)


def digest(run: RunPaths) -> str:
    """The digest of a stage's recipe; what it starts from is not part of it, since that is written once it is known."""
    recipe, member = resolved.read(run.resolved), pipeline.membership(run)
    for reference in member.references if member else ():
        recipe = with_value(recipe, reference.place, reference.stage)
    return hashlib.sha256(text_of(recipe).encode()).hexdigest()


def enter(run: RunPaths, member: Membership, submission: int) -> None:
    """Check that everything a stage needs is done and as it was, and write into its recipe what it starts from.

    Only before its first attempt: later ones start from its own checkpoints.
    """
    owner.check(run, submission)
    if ledger.skim(run.events).last("started") is not None:
        return
    whole, parent = run_shards.task_of(run) or run, RunPaths(Path(member.pipeline))
    with ExitStack() as stack:
        if parent.root.is_dir():
            stack.enter_context(pipeline.locked(parent))
        try:
            if pipeline.is_pipeline(parent) and not pipeline.is_submitted(parent):
                raise NotReady(f"pipeline {parent.name} was not submitted to its end")
            for name, need in member.needs.items():
                _check_done(name, need.paths, need.recipe)
            _pin(whole, member)
        except (MmlaunchError, OSError) as error:
            _give_up(run, str(error))
            raise NotReady(str(error)) from None


def _check_done(name: str, run: RunPaths, noted: str) -> None:
    if not run.resolved.is_file():
        raise NotReady(f"stage {name}, which this one needs, is gone: there is no {run.root}")
    now = status.of(run, whole=True)
    if now.state != "done":
        raise NotReady(f"stage {name}, which this one needs, is not done: it is {now.shown_state} ({run.name})")
    submitted = ledger.skim(run.events).all("submitted")
    if digest(run) not in {noted, *(event.get("recipe") for event in submitted)}:
        raise NotReady(f"stage {name}, which this one needs, was changed since: {run.resolved} is another recipe")


def _pin(run: RunPaths, member: Membership) -> None:
    """Write the checkpoints that the stage starts from into its recipe; make the files that it reads."""
    recipe = resolved.read(run.resolved)
    for reference in member.references:
        source = member.needs[reference.stage].paths
        if reference.file:
            if not (source.root / reference.file).is_file():
                merge(source)
            continue
        # The hashes of a large model take their time: only the first of several shards looks at them.
        first = dict(trained.names(recipe)).get(reference.place) == str(source.root)
        newest, rejected = manifest.newest(source.checkpoints, contents=first)
        if newest is None:
            why = f": {rejected[0]}" if rejected else ""
            raise NotReady(f"stage {reference.stage} has no valid checkpoint{why}")
        checkpoint = source.checkpoint(newest.step)
        recipe = with_value(recipe, reference.place, str(checkpoint))
        users.register(run, checkpoint)
    written = run.resolved.stat()
    publish(run.resolved, text_of(recipe), READ_ONLY)
    os.utime(run.resolved, ns=(written.st_atime_ns, written.st_mtime_ns))  # runs are sorted by when they were submitted
    if run_shards.is_task(run) and (definition := run_shards.read(run)).open:
        run_shards.write(run, shards.close(recipe, definition))


def _give_up(run: RunPaths, reason: str) -> None:
    number = max([1, *run.attempt_numbers])
    ledger.append(run.events, "failed", attempt=number, cause=causes.NEEDS, evidence=reason)
    facts = {"cause": causes.NEEDS, "reason": causes.named(causes.NEEDS).final, "exit_code": int(JobExit.STOP)}
    ledger.append(run.events, "ended", state="failed", **facts)


def must_wait(run: RunPaths) -> bool:
    """Whether a run is a stage that needs one which is not done."""
    member = pipeline.membership(run)
    needs = member.needs.values() if member else ()
    return any(status.of(need.paths).state != "done" for need in needs)


def facts(run: RunPaths, held: bool) -> dict[str, Any]:
    """What a new submission of a stage notes: whether it waits, and the recipe as it is now."""
    return {"held": held, "recipe": digest(run)} if run.stage.is_file() else {}


def after(run: RunPaths, member: Membership) -> None:
    """The last act of a stage that has ended: those that need it may begin, and others where there is room again."""
    if ledger.skim(run.events).of_this_submission.last("ended") is None:
        return
    parent = RunPaths(Path(member.pipeline))
    if pipeline.is_pipeline(parent):
        release(parent, by=member.name)


def halving(member: Membership) -> RunPaths | None:
    """The sweep of a point, where only the best points go on."""
    parent = RunPaths(Path(member.pipeline))
    return parent if pipeline.is_pipeline(parent) and pipeline.read(parent).rungs else None


def release(parent: RunPaths, by: str = "") -> list[str]:
    """Let every stage begin that still waits and whose needs are done; returns their names.

    What is refused is written to standard error, and the stage is left waiting: whoever looks next sees that it waits
    for nothing.
    """
    let_go: list[str] = []
    with pipeline.locked(parent):
        if not pipeline.is_submitted(parent):
            return []
        definition = pipeline.read(parent)
        for stage in _ready(definition):
            try:
                if _let_go(definition, stage, by):
                    let_go.append(stage.name)
            except (MachineError, UserError, OSError) as error:
                print(f"mmlaunch: stage {stage.name} was not released: {error}", file=sys.stderr, flush=True)
    return let_go


def _ready(definition: pipeline.Definition) -> Iterator[Stage]:
    states: dict[str, str] = {}
    for stage in definition.stages:
        if stage.reused or not pipeline.waits(stage.paths):
            continue
        for need in stage.needs:
            if need not in states:
                other = definition.named(need)
                states[need] = status.of(other.paths).state if other is not None else "unknown"
        if all(states[need] == "done" for need in stage.needs):
            yield stage


def _let_go(definition: pipeline.Definition, stage: Stage, by: str) -> bool:
    """Let one stage begin; no where it has to wait until others have left this machine."""
    run = stage.paths
    events = ledger.skim(run.events).of_this_submission
    scheduler = choose.of_run(events)
    submitted = events.last("submitted") or {}
    number = int(submitted.get("submission", 1))
    parts = _parts(run, number)
    if scheduler.can_hold:
        release_job(run, in_job=bool(by))
        _note_released(run, parts, by)
        return True
    wanted = resolved.read(run.resolved).resources
    live = [resolved.read(other.paths.resolved).resources for other in definition.stages if _lives(other)]
    if not scheduler.has_room(wanted, live):
        return False
    _note_released(run, parts, by)
    script = run.attempt(run.attempt_numbers[-1]).script
    after = waiting_for.dependencies(wanted, scheduler, run)
    job = scheduler.submit(run, script, int(submitted.get("ranks", 1)), number, after)
    shards.note_job(run, job, [(one, job) for one in parts])
    return True


def release_job(run: RunPaths, in_job: bool = False) -> None:
    """Let the held job of a stage start."""
    events = ledger.skim(run.events).of_this_submission
    for record in events.all("queued"):
        choose.of_run(events).release(record, in_job)


def _parts(run: RunPaths, submission: int) -> list[int]:
    """The shards that a submission of a stage goes through; none where it is no task."""
    if not run_shards.is_task(run):
        return []
    return run_shards.submitted(run, submission)


def _note_released(run: RunPaths, parts: Sequence[int], by: str) -> None:
    for one in (run, *(run_shards.shard(run, number) for number in parts)):
        ledger.append(one.events, "released", by=by)


def _lives(stage: Stage) -> bool:
    if stage.reused or not stage.paths.resolved.is_file() or pipeline.waits(stage.paths):
        return False
    return status.of(stage.paths).state not in (*FINAL, "lost", "unknown")
