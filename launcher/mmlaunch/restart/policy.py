"""The restart policy: why an attempt ended, and whether another one may begin."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmlaunch.recipe.resources import Restarts
from mmlaunch.restart import log_patterns
from mmlaunch.restart.log_patterns import BY_RECORD, BY_STATE, Cause
from mmlaunch.run.exits import PEER_LOST, TIMED_OUT, JobExit
from mmlaunch.run.heartbeats import laggard
from mmlaunch.run.ledger import Event
from mmlaunch.run.paths import AttemptPaths
from mmlaunch.schedulers.slurm.states import WITHOUT_A_WORD

FREE: frozenset[Cause] = frozenset({"saved", "time limit", "preempted"})  # cost nothing while the run advances
NO_FAULT: frozenset[Cause] = FREE | {"done", "cancelled"}
FINAL: dict[Cause, str] = {
    "stop": "the job asked not to be restarted",
    "bad input": "it would fail again: the recipe or the data are wrong",
    "out of memory": "it would fail again: the step does not fit into memory",
    "disk full": "it would fail again: make room, then resume it",
    "import": "it would fail again: the code cannot be imported",
}
_BUDGETS: dict[Cause, str] = {"node": "node", "hang": "hang", "crash": "crash"}
_LONGEST_PAUSE = 600
_RANK = re.compile(r"^rank \d+")
_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)  # how time limits and preemption announce themselves


@dataclass(frozen=True)
class Ending:
    """Why an attempt ended, and what shows it."""

    cause: Cause
    exit_code: int
    evidence: str = ""
    node: str = ""  # the unfit one, where it is known


@dataclass(frozen=True)
class Verdict:
    """What happens next."""

    again: bool
    reason: str
    pause: int = 0  # seconds before the next attempt
    state: Literal["done", "failed", "cancelled"] = "failed"  # when there is none


def classify(exit_code: int, attempt: AttemptPaths, events: Sequence[Event]) -> Ending:
    """The cause of an ending, from the exit code, the ranks' error records and the last lines of their logs.

    `events` are those since the run was last submitted.
    """
    if exit_code == JobExit.DONE:
        return Ending("done", exit_code)
    if any(event["event"] == "cancelling" for event in events):
        return Ending("cancelled", exit_code, "cancelled by a user")
    by_code: dict[int, Cause] = {
        JobExit.AGAIN: "saved", JobExit.UNFIT_NODE: "node", JobExit.HANG: "hang",
        JobExit.STOP: "stop", JobExit.BAD_INPUT: "bad input", TIMED_OUT: "time limit",
    }  # fmt: skip
    if exit_code > 128 and any(e["event"] == "signal" and e.get("attempt") == attempt.number for e in events):
        return Ending("saved", exit_code)  # all ranks had saved together; the last ones were ended on their way out
    error = first_error(attempt) or {}
    if error.get("type") == PEER_LOST:
        error = {}  # it only saw another one go: the cause stands elsewhere
    named, node = BY_RECORD.get(str(error.get("type", ""))), str(error.get("node", ""))
    if exit_code in by_code:
        cause = named if exit_code == JobExit.STOP and named else by_code[exit_code]
        return Ending(cause, exit_code, (_said(error) if error else "") + _laggard(cause, error, attempt), node)
    if error:  # of the exit codes of all ranks, Slurm passes on the highest: 137 where it had to kill the others
        found = log_patterns.in_text(str(error.get("message", "")))
        cause = named or (found[0] if found else "crash")
        return Ending(cause, exit_code, _said(error) + _laggard(cause, error, attempt), node)
    if (found := log_patterns.in_logs(attempt)) and (found[0] != "crash" or exit_code - 128 not in _WARNINGS):
        return Ending(found[0], exit_code, found[1])
    number, killed = exit_code - 128 if exit_code > 128 else 0, log_patterns.killed(attempt)
    if number == signal.SIGKILL or killed:
        what = "a rank was killed (signal 9): by hand, or by the system for lack of memory"
        return Ending("crash", exit_code, f"{what}; {killed}" if killed else what)
    if number in _WARNINGS:
        return Ending("time limit", exit_code, f"signal {number} came before a rank could save")
    if number:
        return Ending("crash", exit_code, f"a rank was ended by signal {number}")
    return Ending(
        "crash", exit_code, log_patterns.lost_connection(attempt) or f"a rank ended with exit code {exit_code}"
    )


def _laggard(cause: Cause, error: dict[str, object], attempt: AttemptPaths) -> str:
    """A rank that hangs in earnest leaves no record; the others only tell that they waited for it."""
    beat = laggard(attempt, float("inf")) if cause == "hang" else None
    return f"; rank {beat.rank} stopped first ({beat.doing})" if beat and beat.rank != error.get("rank") else ""


def taken(word: str) -> Ending:
    """The ending of an attempt that Slurm took off its nodes without asking; `word` is Slurm's own, if it is known."""
    if cause := BY_STATE.get(word):
        return Ending(cause, 0, f"Slurm says {word}: {WITHOUT_A_WORD[word]}")
    return Ending("preempted", 0, "preempted, or requeued by hand")


def left_open(events: Sequence[Event]) -> bool:
    """Whether the newest attempt began and never ended: Slurm took it away without asking the batch script."""
    newest = [event["event"] for event in events if event["event"] in ("started", "requeued", "ended")]
    return bool(newest) and newest[-1] == "started"


def decide(ending: Ending, events: Sequence[Event], budgets: Restarts) -> Verdict:
    """Another attempt, or the end. `events` are those since the submission, before this ending was written."""
    if ending.cause == "done":
        return Verdict(False, "the run is complete", state="done")
    if ending.cause == "cancelled":
        return Verdict(False, ending.evidence, state="cancelled")
    if ending.cause in FINAL:
        return Verdict(False, FINAL[ending.cause])
    stuck = restarts_without_progress(events)
    if stuck >= budgets.no_progress:
        return Verdict(False, f"{stuck} restarts in a row brought no new checkpoint (restarts.no_progress)")
    if ending.cause in FREE:
        return Verdict(True, "it continues from its newest checkpoint")
    if ending.cause == "crash" and _failed_the_same_way(ending, events):
        return Verdict(False, "it failed in the same way twice: it would fail again")
    budget = int(getattr(budgets, _BUDGETS[ending.cause]))
    used = sum(event["cause"] == ending.cause for event in events if event["event"] == "requeued")
    if used >= budget:
        return Verdict(False, f"the budget for this cause is used up (restarts.{_BUDGETS[ending.cause]}: {budget})")
    pause = 0 if used == 0 else min(budgets.backoff * 2 ** (used - 1), _LONGEST_PAUSE)
    return Verdict(True, f"restart {used + 1} of {budget} for this cause", pause)


def _failed_the_same_way(ending: Ending, events: Sequence[Event]) -> bool:
    """Whether the attempt before left the same error record: same step, same message; whichever rank was quicker."""
    failed = [str(event.get("evidence", "")) for event in events if event["event"] == "failed"]
    said, before = (_RANK.sub("", text) for text in (ending.evidence, failed[-1] if failed else ""))
    return said == before and said != ending.evidence  # without a rank there was no record


def first_error(attempt: AttemptPaths) -> dict[str, object] | None:
    """The error record that was written first, rather not one of a rank that only lost its peer."""
    records = []
    for path in attempt.rank_errors:
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return min(records, key=_order, default=None)


def _order(record: dict[str, object]) -> tuple[bool, float]:
    return record.get("type") == PEER_LOST, float(str(record.get("time", 0)))


def restarts_without_progress(events: Sequence[Event]) -> int:
    """How many restarts in a row, up to now, were not followed by a newer checkpoint."""
    count = best = 0
    for event in events:
        if event["event"] == "checkpoint" and int(event.get("step", 0)) > best:
            best, count = int(event["step"]), 0
        elif event["event"] == "reference" and event.get("new"):  # what is measured of it is kept as well
            count = 0
        elif event["event"] == "requeued":
            count += 1
    return count


def _said(error: dict[str, object]) -> str:
    step = f" in step {error['step']}" if error.get("step") is not None else ""
    sample = f" ({error['sample']})" if error.get("sample") else ""
    return f"rank {error.get('rank')}{step}{sample}: {error.get('type')}: {error.get('message')}"
