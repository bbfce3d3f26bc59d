"""Submits again those shards of a task that did not end well, or were damaged since; the others keep what they have."""

from __future__ import annotations

from collections.abc import Sequence

from mmlaunch.errors import UserError
from mmlaunch.monitor import status
from mmlaunch.monitor.state import Status
from mmlaunch.monitor.why import UNWELL
from mmlaunch.run import ledger, owner, shards
from mmlaunch.run.files import explained
from mmlaunch.run.paths import RunPaths
from mmlaunch.submit import resume as one_run
from mmlaunch.submit import secrets, stages, submission
from mmlaunch.submit.create_run import submitter
from mmlaunch.submit.prepare import Prepared

CHANGEABLE = ("resources", "restarts", "env", "checkpoint", "log", "objective.max_failed", "objective.at_once")
"""What a resumed task may change: nothing that its records depend on."""


def resume_task(
    run: RunPaths, overrides: Sequence[str], cluster_name: str | None, held: bool | None = None
) -> Prepared:
    """Submit the shards that failed, were lost or were cancelled, with the code of the first submission.

    `held`: as for any other run.
    """
    events, every = ledger.skim(run.events), shards.all_shards(run)
    states = status.of_all(every, whole=True)
    damaged = [number for number, one in enumerate(every) if _damaged(one, states[number])]
    again = [number for number, one in enumerate(states) if one.state in UNWELL or number in damaged]
    if not again and not overrides:
        now = status.of(run)
        done = now.state in ("done", "failed")
        raise UserError(
            f"{run.name} is {now.state}: {now.reason}; mmlaunch {'results' if done else 'status'} {run.name}"
        )
    _check(run, overrides)
    prepared = one_run.prepare_again(run, overrides, cluster_name)
    submission.check_here(prepared)
    values = secrets.values(prepared.plan.passed)
    number = one_run.own(run, events)
    taken: list[RunPaths] = []
    try:
        with explained("cannot write into the run directory"):
            one_run.write(prepared, number, values)
            held = stages.must_wait(run) if held is None else held
            facts = {**prepared.plan.facts, **stages.facts(run, held), "submission": number}
            for place in again:
                shard = every[place]
                if place in damaged:
                    shards.set_aside(shard, f"damaged-{number}")
                    shards.make(run, place)
                owner.take(shard, number, **submitter())
                taken.append(shard)
                one_run.close_open(shard, states[place], ledger.skim(shard.events))
                first, stop = shards.read(run).ranges[place]
                ledger.append(shard.events, "submitted", **facts, rows=stop - first)
            ledger.append(run.events, "submitted", **facts)
    except BaseException:
        for shard in (run, *taken):
            owner.release(shard, number)
        raise
    if again:
        submission.launch(prepared.plan, number, number, again, held)
    return prepared


def _damaged(one: RunPaths, now: Status) -> bool:
    """Whether a shard is gone, or was whole and is no longer."""
    return not one.events.exists() if now.state == "unknown" else now.state == "done" and not shards.is_whole(one)


def _check(run: RunPaths, overrides: Sequence[str]) -> None:
    """Refuse what would give the rest of the records another meaning than those that are there."""
    for override in overrides:
        path = override.partition("=")[0]
        if not any(path == name or path.startswith(f"{name}.") for name in CHANGEABLE):
            what = f"the shards of {run.name} were written at submission, and some of their records may be there"
            raise UserError(f"{override}: {what}; submit a new task, or change only {', '.join(CHANGEABLE)}")
