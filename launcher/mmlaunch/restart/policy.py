"""The restart policy: why an attempt ended, and whether another one may begin."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mmlaunch.recipe.resources import Restarts
from mmlaunch.restart import causes, log_patterns
from mmlaunch.restart.causes import CANCELLED, CRASH, DONE, HANG, NODE, PREEMPTED, PROGRAM, SAVED, TIME_LIMIT
from mmlaunch.run.error_record import ErrorRecord, errors
from mmlaunch.run.exits import PEER_LOST, WARNINGS, JobExit
from mmlaunch.run.heartbeats import straggler
from mmlaunch.run.ledger import Event, kind_of
from mmlaunch.run.paths import AttemptPaths

_LONGEST_PAUSE = 600
_LONGEST_PAUSE_IN_JOB = 120  # seconds for which nodes may stand idle
_RANK = re.compile(r"^rank \d+(?: \([^)]*\))?")
_BY_SIGNAL = ("Killed", "Segmentation fault", "Bus error", "Illegal instruction", "Floating point exception")
"""How srun says that a task was ended by a signal that no program sends itself; the errors of others follow from it."""


@dataclass(frozen=True)
class Ending:
    """Why an attempt ended, and what shows it."""

    cause: str
    """The name of a row in `causes`."""
    exit_code: int
    evidence: str = ""
    node: str = ""  # the unfit node, if it is known


@dataclass(frozen=True)
class Verdict:
    """What happens next."""

    again: bool
    reason: str
    pause: int = 0  # seconds before the next attempt
    state: Literal["done", "failed", "cancelled"] = "failed"  # of the run, if there is no other attempt


def classify(exit_code: int, attempt: AttemptPaths, events: Sequence[Event]) -> Ending:
    """The cause of an ending. All evidence is weighed: the exit code, the record of every rank, the ends of all logs.
    The first cause of the table that any of it shows decides.

    `events` are those since the run was last submitted.
    """
    if exit_code == JobExit.DONE:  # also of an srun that hears nothing any more of ranks, since their node has failed
        node = log_patterns.lost_node(attempt)
        return Ending(NODE, exit_code, str(node), node.node) if node else Ending(DONE, exit_code)
    if any(kind_of(event) == "cancelling" for event in events):
        return Ending(CANCELLED, exit_code, "cancelled by a user")
    if exit_code == JobExit.AGAIN or (exit_code > 128 and _had_saved(attempt, events)):
        node = log_patterns.failed_node(attempt)
        return Ending(NODE, exit_code, str(node), node.node) if node else Ending(SAVED, exit_code)
    trained = _trained(attempt, events)
    found = [
        *_of_exit_code(exit_code, attempt),
        *_of_records(exit_code, attempt, trained),
        *_of_logs(exit_code, attempt, trained),
    ]
    ending = min(found, key=lambda ending: causes.rank(ending.cause), default=None)
    by_signal = log_patterns.first_end(attempt)[1].startswith(_BY_SIGNAL)
    if ending is None or (by_signal and ending.cause in (PROGRAM, CRASH)):
        return _from_exit_code(exit_code, attempt, trained)
    return ending


def _had_saved(attempt: AttemptPaths, events: Sequence[Event]) -> bool:
    """Whether ranks that a signal had warned had saved before the last of them were killed while they ended."""
    ours = [event for event in events if event.get("attempt") == attempt.number]
    warning = next((event for event in ours if kind_of(event) == "signal"), None)
    if warning is None:
        return False
    step = int(warning.get("step") or 0)  # a save that had begun before may still be written down after the signal
    saved = any(kind_of(event) == "checkpoint" and int(event.get("step") or -1) >= step for event in ours)
    return saved or log_patterns.first_end(attempt)[1] == f"Exited with exit code {int(JobExit.AGAIN)}"


def _trained(attempt: AttemptPaths, events: Sequence[Event]) -> bool | None:
    """Whether an attempt did a step of training; None if nobody knows."""
    ours = {kind_of(event) for event in events if event.get("attempt") == attempt.number}
    if ours & {"step", "checkpoint", "records"} or any((error.step or 0) > 1 for error in errors(attempt)):
        return True
    return log_patterns.trained(attempt) or (False if "started" in ours else None)


def _of_exit_code(exit_code: int, attempt: AttemptPaths) -> Iterator[Ending]:
    """What an exit code of our own says."""
    if cause := causes.of_exit_code(exit_code):
        yield _with_record(cause.name, exit_code, _first(attempt), attempt)


def _with_record(cause: str, exit_code: int, error: ErrorRecord | None, attempt: AttemptPaths) -> Ending:
    """An ending whose evidence is an error record. A rank that truly hangs leaves none: its heartbeat names it."""
    evidence, node = (str(error), error.node) if error else ("", "")
    rank = straggler(attempt, float("inf")) if cause == HANG else None
    if rank and not (error and rank.rank == error.rank):
        evidence += f"; rank {rank.rank} stopped first ({rank.doing})"
    return Ending(cause, exit_code, evidence, node)


def _of_records(exit_code: int, attempt: AttemptPaths, trained: bool | None) -> Iterator[Ending]:
    """What each rank's own record says; of those with the same cause, the first one."""
    for error in errors(attempt):
        if error.type == PEER_LOST:
            continue
        by_type, text = causes.of_error_type(error.type), f"{error.type}: {error.message}"
        if by_type is None and log_patterns.is_connection(text) and log_patterns.in_text(text) is None:
            continue  # it only lost another rank, whose record or log holds the cause
        name = by_type.name if by_type else log_patterns.in_text(text)
        name = name or log_patterns.of_record(text, error.traceback, trained)
        if exit_code not in (JobExit.STOP, JobExit.BAD_INPUT) or causes.named(name).budget == "final":
            yield _with_record(name, exit_code, error, attempt)


def _of_logs(exit_code: int, attempt: AttemptPaths, trained: bool | None) -> Iterator[Ending]:
    """What the logs say. Exit codes with a meaning of their own need them only where a rank hangs."""
    if exit_code in (JobExit.STOP, JobExit.BAD_INPUT, JobExit.UNFIT_NODE):
        return
    evidence = log_patterns.weigh(attempt, trained)
    if evidence is None:
        return
    told_to_end = exit_code - 128 in WARNINGS and "Exited with exit code" not in log_patterns.first_end(attempt)[1]
    weak = evidence.cause == CRASH or (evidence.cause == PROGRAM and trained)
    if not (weak and told_to_end):  # ranks that are told to end may raise anything
        node = evidence.node if evidence.cause == NODE else ""
        yield Ending(evidence.cause, exit_code, str(evidence), node)


def _first(attempt: AttemptPaths) -> ErrorRecord | None:
    """The record that was written first, if it is about the rank itself."""
    return next((error for error in errors(attempt) if error.type != PEER_LOST), None)


def _from_exit_code(exit_code: int, attempt: AttemptPaths, trained: bool | None) -> Ending:
    """An ending of which only the exit code is known, or the signal that ended the first task."""
    number, (task, how) = exit_code - 128 if exit_code > 128 else 0, log_patterns.first_end(attempt)
    if number == signal.SIGKILL or how == "Killed":
        what = "a rank was killed (signal 9): by hand, or by the system for lack of memory"
        return Ending(CRASH, exit_code, f"{what}; {task}" if how == "Killed" else what)
    if number in WARNINGS and not how.startswith(_BY_SIGNAL):
        return Ending(TIME_LIMIT, exit_code, f"signal {number} came before a rank could save")
    if number or how.startswith(_BY_SIGNAL):
        what = f"a rank was ended by signal {number}" if number else "a rank was ended by a signal"
        return Ending(CRASH, exit_code, f"{what}; {task}: {how}" if how.startswith(_BY_SIGNAL) else what)
    if not trained and (words := log_patterns.last_words(attempt)):
        return Ending(PROGRAM, exit_code, words)
    evidence = log_patterns.lost_connection(attempt) or f"a rank ended with exit code {exit_code}"
    return Ending(CRASH, exit_code, evidence)


def taken(state: str, sentence: str = "") -> Ending:
    """The ending of an attempt that the scheduler took off its nodes without asking the policy.

    `state` is one of the words in `causes`, or empty; `sentence` says it to the user.
    """
    if cause := causes.of_scheduler_state(state):
        return Ending(cause.name, 0, sentence)
    return Ending(PREEMPTED, 0, "preempted, or requeued by hand")


def left_open(events: Sequence[Event]) -> bool:
    """Whether the newest attempt began and never ended: the scheduler took it away without asking the policy."""
    newest = [kind_of(event) for event in events if kind_of(event) in ("started", "requeued", "ended")]
    return bool(newest) and newest[-1] == "started"


def decide(ending: Ending, events: Sequence[Event], budgets: Restarts) -> Verdict:
    """Another attempt, or the end. `events` are those since the submission, before this ending was written."""
    cause = causes.named(ending.cause)
    if cause.name == DONE:
        return Verdict(False, cause.final, state="done")
    if cause.name == CANCELLED:
        return Verdict(False, ending.evidence, state="cancelled")
    if cause.budget == "final":
        return Verdict(False, cause.final)
    fruitless = restarts_without_progress(events)
    if fruitless >= budgets.no_progress:
        return Verdict(False, f"{fruitless} restarts in a row brought no new checkpoint (restarts.no_progress)")
    if cause.budget == "free":
        return Verdict(True, "it continues from its newest checkpoint")
    if cause.name == CRASH and _failed_the_same_way(ending, events):
        return Verdict(False, "it failed in the same way twice: it would fail again")
    budget = int(getattr(budgets, cause.budget))
    used = sum(causes.named(str(e["cause"])).budget == cause.budget for e in events if kind_of(e) == "requeued")
    if used >= budget:
        return Verdict(False, f"the budget for this cause is used up (restarts.{cause.budget}: {budget})")
    pause = 0 if used == 0 else min(budgets.backoff * 2 ** (used - 1), _LONGEST_PAUSE)
    return Verdict(True, f"restart {used + 1} of {budget} for this cause", pause)


def stays_in_job(ending: Ending, verdict: Verdict, events: Sequence[Event], budgets: Restarts, left: float) -> bool:
    """Whether the next attempt may begin in the same job, which ends in `left` seconds.

    What a rank did by itself is tried again where it was. If that brings no checkpoint, or another node may do better,
    or the job would soon end, the queue comes first.
    """
    by_itself = causes.named(ending.cause).budget in ("crash", "hang") and not ending.node
    fresh = restarts_without_progress(events) == 0
    in_time = verdict.pause <= _LONGEST_PAUSE_IN_JOB and left > verdict.pause + 2 * _start_up(events)
    return budgets.in_job and verdict.again and by_itself and fresh and in_time


def _start_up(events: Sequence[Event]) -> float:
    """The seconds that the newest attempt took to its first step; if it did none, its whole life."""
    times = {kind_of(event): float(event["time"]) for event in events if kind_of(event) in ("started", "started_up")}
    began = times.get("started", time.time())
    done = times.get("started_up", 0.0)
    return (done if done > began else time.time()) - began


def _failed_the_same_way(ending: Ending, events: Sequence[Event]) -> bool:
    """Whether the attempt before left the same error record, perhaps from another rank: same step, same message."""
    failed = [str(event.get("evidence", "")) for event in events if kind_of(event) == "failed"]
    this, before = (
        log_patterns.PLACE.sub("", _RANK.sub("", text)) for text in (ending.evidence, failed[-1] if failed else "")
    )
    return this == before and this != ending.evidence  # evidence without a rank does not come from a record


def restarts_without_progress(events: Sequence[Event]) -> int:
    """How many restarts in a row, up to now, were not followed by a newer checkpoint."""
    count = best = 0
    for event in events:
        remembered = kind_of(event) == "resumed" and event.get("tier") == "memory"  # its save has no event of its own
        if (kind_of(event) == "checkpoint" or remembered) and int(event.get("step", 0)) > best:
            best, count = int(event["step"]), 0
        elif kind_of(event) in ("reference", "generated", "records") and event.get(
            "new"
        ):  # what was computed is kept as well
            count = 0
        elif kind_of(event) == "requeued":
            count += 1
    return count
