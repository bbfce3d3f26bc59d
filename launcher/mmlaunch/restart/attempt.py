"""`python -m mmlaunch.attempt`: the first and the last act of a job script, on the batch host.

`open RUN SCRIPT SUBMISSION` begins an attempt and prints its number and a free port. `close RUN ATTEMPT STATUS
SUBMISSION` gives the ranks' exit status to the restart policy, writes its decision to the ledger and exits with it: 90
for another attempt, 95 for one in the same job if MMLAUNCH_IN_JOB says that the script can begin it, otherwise the exit
code of the run. SUBMISSION is the number that the job script got as its argument; a job whose submission does not own
the run any more ends before it writes anything.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmlaunch.errors import BadInput, MachineError, MmlaunchError
from mmlaunch.load.cluster import PreSignal
from mmlaunch.recipe import resolved
from mmlaunch.recipe.resources import Restarts
from mmlaunch.recipe.scalars import format_duration
from mmlaunch.restart import causes, log_lines, log_patterns, policy
from mmlaunch.restart.policy import Ending
from mmlaunch.run import compaction, ledger, manifest, owner, shards
from mmlaunch.run.event_types import Kind
from mmlaunch.run.exits import CANCELLED, IN_JOB, JobExit
from mmlaunch.run.ledger import Event
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose
from mmlaunch.schedulers.base import BatchJob, Scheduler

EXCLUDED_FOR = 86_400  # seconds: if a node is still unfit after a day, its administrator has to know
MOST_EXCLUDED = 8
OVER = "over"
"""What `open` prints in the place of a number for a shard that needs no attempt."""
EARLY = 60
"""Seconds by which a scheduler may send its warning too early."""


def begin(run: RunPaths, script: Path, submission: int = 0) -> tuple[int, int]:
    """Open the next attempt: its folder, its `started` event, a port."""
    owner.check(run, submission)
    events = ledger.skim(run.events)
    number = max([len(events.all("started")), *(n for n in run.attempt_numbers if run.attempt(n).rank_logs)]) + 1
    scheduler = choose.of_run(events)
    job = scheduler.batch()
    _check_still_ours(run, events.of_this_submission, job)
    if all(str(event.get("job")) != job.number for event in events.all("queued")):
        scheduler.adopt(run, job.number)
    with _unwritable("its owner"):
        owner.write(run, submission, job=job.number, attempt=number, **job.process)
    ours = events.of_this_submission.events  # what another one has left open, whoever submitted again has closed
    if policy.left_open(ours):
        _close_taken(run, number - 1, ours, scheduler, job)
    attempt = run.attempt(number)
    for folder in (attempt.logs, attempt.stacks):
        folder.mkdir(parents=True, exist_ok=True)
    if not attempt.script.exists():  # a restart runs the script of the attempt before
        shutil.copyfile(script, attempt.script)
        shutil.copyfile(_deepspeed_before(run, number), attempt.deepspeed)
    with _unwritable("a shorter ledger"):
        compaction.compact(run.events)
    _note(run, "started", attempt=number, job=job.number, nodes=job.nodes, **job.process)
    print(log_lines.MARKER.format(number=number), file=sys.stderr, flush=True)
    return number, free_port(number)


def end(run: RunPaths, number: int, exit_code: int, submission: int = 0, here: bool = False) -> int:
    """Close an attempt: classify its ending, decide, write both to the ledger; returns the exit code.

    `here`: the job script can begin the next attempt in the same job.
    """
    owner.check(run, submission, number)
    known = ledger.skim(run.events).of_this_submission
    events, scheduler = known.events, choose.of_run(known)
    job = scheduler.batch()
    if ended := known.last("ended"):  # whoever cancelled the run has written it already
        _forget(run, scheduler, job)
        return _last_word(int(ended.get("exit_code", CANCELLED)))
    ending = policy.classify(exit_code, run.attempt(number), events)
    costs_nothing = causes.named(ending.cause).budget == "free" and job.number
    if costs_nothing and (log_patterns.cancellation(run.attempt(number)) or scheduler.was_cancelled(job)):
        ending = Ending(causes.CANCELLED, exit_code, f"cancelled with {scheduler.cancel_command}")
    budgets = _budgets(run)
    verdict = policy.decide(ending, events, budgets)
    if causes.named(ending.cause).is_fault:
        facts = {"cause": ending.cause, "exit_code": exit_code, "evidence": ending.evidence}
        _note(run, "failed", attempt=number, **facts)
    if ending.node:
        _note(run, "excluded", node=ending.node, until=round(time.time()) + EXCLUDED_FOR)
    if verdict.again:
        facts = {"cause": ending.cause, "reason": verdict.reason, "pause": verdict.pause}
        here = here and policy.stays_in_job(ending, verdict, events, budgets, _seconds_left())
        here = here and scheduler.keeps_nodes(job)
        facts |= {"in_job": True} if here else {}
        worth_it = _note(run, "requeued", attempt=number, **facts) or _has_saved(run, number)
        if worth_it and here:
            time.sleep(verdict.pause)
            return IN_JOB
        _forget(run, scheduler, job)
        if not worth_it:
            return JobExit.STOP  # nobody counts this restart, and it would bring nothing
        try:
            _requeue(run, number, scheduler, job, verdict.pause)
        except MachineError as error:
            reason = f"{scheduler.name} did not take the job back: {error}"
            state = {"state": "failed", "cause": ending.cause, "reason": reason, "exit_code": int(JobExit.STOP)}
            _note(run, "ended", attempt=number, **state)
            return JobExit.STOP
        return JobExit.AGAIN
    reason = f"{verdict.reason}{_too_short(run, events, ending) if verdict.state == 'failed' else ''}"
    state = {"state": verdict.state, "cause": ending.cause, "reason": reason, "exit_code": exit_code}
    _note(run, "ended", attempt=number, **state)
    with _unwritable("a shorter ledger"):
        compaction.compact(run.events)
    _forget(run, scheduler, job)
    return CANCELLED if verdict.state == "cancelled" else _last_word(exit_code)


def _last_word(exit_code: int) -> int:
    """The exit code of a job that ends: whatever a rank ended with, it asks for no other attempt."""
    return JobExit.STOP if exit_code in (JobExit.AGAIN, IN_JOB) else exit_code


def _seconds_left() -> float:
    """Until the ranks of this job are told to save and leave."""
    deadline, lead = os.environ.get("MMLAUNCH_DEADLINE"), os.environ.get("MMLAUNCH_LEAD")
    return float(deadline) - float(lead or 0) - time.time() if deadline else float("inf")


def _forget(run: RunPaths, scheduler: Scheduler, job: BatchJob) -> None:
    """Free the memory of the nodes from the checkpoints of this job: the next attempt may begin elsewhere."""
    with suppress(BadInput):
        if (folder := os.environ.get("MMLAUNCH_MEMORY")) and resolved.read(run.resolved).checkpoint.memory_every:
            scheduler.delete(job, Path(folder))


def _deepspeed_before(run: RunPaths, number: int) -> Path:
    """The configuration of the attempt before; a shard's first one takes that of its task."""
    task = shards.task_of(run)
    return run.attempt(number - 1).deepspeed if task is None else task.attempt(task.attempt_numbers[-1]).deepspeed


def is_over(run: RunPaths) -> bool:
    """Whether a shard has ended since it was submitted: a job that starts again goes on with its other shards."""
    return shards.task_of(run) is not None and ledger.skim(run.events).of_this_submission.last("ended") is not None


def _note(run: RunPaths, event: Kind, **facts: Any) -> bool:
    """Append an event. A ledger that cannot be written (a full disk, a read-only one) costs the event, not the run."""
    with _unwritable(f"the event {event}"):
        ledger.append(run.events, event, **facts)
        return True
    return False


@contextmanager
def _unwritable(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        print(f"mmlaunch: {what} could not be written down: {error}", file=sys.stderr, flush=True)


def _has_saved(run: RunPaths, number: int) -> bool:
    """Whether an attempt has left a new checkpoint."""
    with suppress(OSError):
        since = run.attempt(number).script.stat().st_mtime  # written just before the attempt began
        return any(run.checkpoint(step).stat().st_mtime > since for step in manifest.steps(run.checkpoints))
    return False


def _too_short(run: RunPaths, events: Sequence[Event], ending: Ending) -> str:
    """Whether the run got nowhere because its time limit is too short, as the end of a sentence."""
    started = next((event["time"] for event in reversed(events) if event["event"] == "started"), time.time())
    with suppress(BadInput, OSError, ValueError, KeyError, TypeError):
        limit = resolved.read(run.resolved).resources.time
        lead = int(json.loads(run.profile.read_text(encoding="utf-8")).get("signal", {}).get("lead", PreSignal().lead))
        at_the_limit = time.time() - started >= limit - lead - EARLY
        if ending.cause in (causes.SAVED, causes.TIME_LIMIT) and at_the_limit:
            what = f"{format_duration(limit)} with a warning {format_duration(lead)} before the end"
            return f"; resources.time is too short for a start and a save: {what}"
    return ""


def _check_still_ours(run: RunPaths, events: ledger.Events, job: BatchJob) -> None:
    """A job may start after its run has ended. One that was replaced by another may start again: the scheduler had put
    it back into the queue itself."""
    if ended := events.last("ended"):
        raise MmlaunchError(f"{run.name} has ended ({ended['state']}): job {job.number} came too late")
    if events.last("cancelling"):
        facts = {"cause": causes.CANCELLED, "reason": "cancelled by a user", "exit_code": CANCELLED}
        ledger.append(run.events, "ended", state="cancelled", **facts)
        raise MmlaunchError(f"{run.name} was cancelled: job {job.number} came too late")
    jobs = [str(event.get("job")) for event in events.all("queued")]
    if job.number in jobs[:-1] and job.number != jobs[-1]:
        raise MmlaunchError(f"job {jobs[-1]} goes on with this run")


def _close_taken(run: RunPaths, number: int, known: Sequence[Event], scheduler: Scheduler, job: BatchJob) -> None:
    """Close an attempt that the scheduler took off its nodes and requeued without asking the policy: ask it now."""
    removal = scheduler.removal(job)
    ending = policy.taken(removal.state, removal.sentence)
    verdict = policy.decide(ending, known, _budgets(run))
    if causes.named(ending.cause).is_fault:
        _note(run, "failed", attempt=number, cause=ending.cause, evidence=ending.evidence)
    facts = {"attempt": number, "cause": ending.cause, "by": scheduler.name}
    if verdict.again:
        reason = f"{ending.evidence}; {verdict.reason}"
        _note(run, "requeued", **facts, reason=reason, pause=0)
        return
    state = {"state": "failed", "reason": verdict.reason, "exit_code": int(JobExit.STOP)}
    _note(run, "ended", **facts, **state)
    raise MmlaunchError(verdict.reason)


def _requeue(run: RunPaths, number: int, scheduler: Scheduler, job: BatchJob, pause: int) -> None:
    """Have the job run again after the pause. A running job cannot be kept off a node: if one is unfit, a new job takes
    over."""
    events = ledger.skim(run.events)
    unfit, avoided = excluded(events, time.time()), (events.last("queued") or {}).get("excluded", [])
    if scheduler.excludes_nodes and not set(unfit) <= set(avoided):
        try:
            _note(run, "queued", **scheduler.resubmit(run, number, job, unfit, pause))
            return
        except MachineError as error:  # it cannot be submitted from this node: rather the same nodes than no restart
            _note(run, "warning", what=str(error))
    scheduler.requeue(job, pause)


def excluded(events: ledger.Events, now: float) -> list[str]:
    """The nodes that this run stays away from; only the newest few, so that some nodes are always left."""
    nodes = [str(event["node"]) for event in events.all("excluded") if event.get("until", 0) > now]
    return sorted(set(nodes[-MOST_EXCLUDED:]))


def _budgets(run: RunPaths) -> Restarts:
    """The recipe's budgets. If the recipe is damaged, use the defaults: the ending still has to be written."""
    try:
        return resolved.read(run.resolved).restarts
    except BadInput:
        return Restarts()


def free_port(attempt: int, low: int = 10_000, high: int = 32_000) -> int:
    """A free port of this host, below the ephemeral range, from which the kernel serves other programs.

    Jobs that share a node begin to look in different places, and so does an attempt after one that lost its port.
    """
    start = low + (os.getpid() * 7 + attempt * 131) % (high - low)
    for offset in range(high - low):
        port = low + (start - low + offset) % (high - low)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
    raise MachineError("no free port between 10000 and 32000")


def main(arguments: list[str]) -> int:
    """The command line of job scripts; users never type it."""
    try:
        if len(arguments) in (3, 4) and arguments[0] == "open":
            run, submission = RunPaths(Path(arguments[1])), int((arguments[3:] or "0")[0])
            if is_over(run):
                owner.check(run, submission)
                print(OVER)
            else:
                print(*begin(run, Path(arguments[2]), submission))
            return 0
        if len(arguments) in (4, 5) and arguments[0] == "close":
            number, exit_code, submission = (int(argument) for argument in [*arguments[2:], "0"][:3])
            here = "MMLAUNCH_IN_JOB" in os.environ
            return end(RunPaths(Path(arguments[1])), number, exit_code, submission, here)
    except (MmlaunchError, OSError) as error:
        print(f"mmlaunch: {error}", file=sys.stderr)
        with suppress(MmlaunchError, OSError):
            run = RunPaths(Path(arguments[1]))
            scheduler = choose.of_run(ledger.skim(run.events))
            _forget(run, scheduler, scheduler.batch())
        return JobExit.STOP
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
