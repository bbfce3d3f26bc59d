"""Explains a run in one paragraph: what ended it, what shows that, what was done about it, what to type next."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from mmlaunch.monitor import status
from mmlaunch.monitor.state import Status
from mmlaunch.restart import causes, log_patterns
from mmlaunch.run import ledger, shards
from mmlaunch.run.job_logs import batch_logs
from mmlaunch.run.ledger import Events
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose

UNWELL = ("failed", "lost", "cancelled")
"""The states of a shard that has to be resumed."""
_RANK = re.compile(r"rank[ -](\d{1,9})\b")
"""How evidence names the rank that it comes from."""


@dataclass(frozen=True)
class Story:
    """The paragraph, sentence by sentence."""

    run: str
    state: str
    what: str
    evidence: str
    place: str  # file:line of the evidence, below the run directory
    done: str
    next: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def of(run: RunPaths) -> Story:
    """Explain the state of a run."""
    now, events = status.of(run, whole=True), ledger.skim(run.events).of_this_submission
    if shards.is_task(run):
        return _of_task(run, now)
    if now.state == "failed":
        return _failed(run, now, events)
    if now.state == "lost" and (found := log_patterns.weigh(run.attempt(now.attempt or 1))):
        cause, line = found.cause, str(found)
        what, following = f"Its job is gone. {causes.named(cause).why}", _following(run, cause, now, events)
        place = locate(run, now.attempt or 1, line)
        return Story(run.name, now.state, what, line, place, _history(events), following)
    if now.state == "lost" and (last := _last_words(run)):
        following = f"mmlaunch logs {run.name}    then mmlaunch resume {run.name}"
        what = "Its job is gone and left no word but this in the log of its job script"
        return Story(run.name, now.state, what, last, locate(run, 1, last), _history(events), following)
    still = now.state in ("starting", "running") and now.reason and not now.silent
    but = ", but nothing of it is written any more" if now.silent else ", but stands still" if still else ""
    what = {
        "done": _complete(now, events),
        "cancelled": f"Cancelled by {_canceller(events) if now.state == 'cancelled' else ''} at step {now.step or 0}",
        "lost": "Its job is gone and left no word",
        "pending": "It waits for its turn",
        "held": "It waits for a human",
    }.get(now.state, f"Nothing ended it: it is {now.shown_state}{but}")
    task = shards.task_of(run)
    following = {
        "done": f"mmlaunch results {task.name}" if task else f"mmlaunch resume {run.name} -s {_more(events)}",
        "cancelled": f"mmlaunch resume {run.name}",
        "lost": f"mmlaunch logs {run.name}    then mmlaunch resume {run.name}",
    }.get(now.state, f"mmlaunch logs {run.name}; a hang is ended and restarted by itself" if still else "")
    if now.silent:
        following = f"see to the disk of {run.root} (df, quota): the run goes on meanwhile"
    following = following or f"mmlaunch status {run.name}"
    return Story(run.name, now.state, what, now.reason if now.state != "done" else "", "", _history(events), following)


def _more(events: Events) -> str:
    """By which a run that is done goes on."""
    return "stop.patience=MORE" if events.last("stopped_early") else "steps=MORE"


def _complete(now: Status, events: Events) -> str:
    """That a run is done, and why if it has not done all of its steps."""
    complete = f"Complete after {now.attempt} attempt{'s' if now.attempt > 1 else ''}, at step {now.step}"
    early = events.last("stopped_early")
    if early is None:
        return complete
    best = f" than {early['best']:g}" if isinstance(early.get("best"), float) else ""
    return f"{complete}: {early.get('metric')} was no better{best} in {early.get('evaluations')} evaluation(s)"


def of_pipeline(run: RunPaths) -> Story:
    """The story of the first stage that did not end well stands for the pipeline."""
    from mmlaunch.monitor import pipeline

    view = pipeline.of(run)
    whole, named = view.whole, zip(view.definition.stages, view.stages, strict=True)
    wrong = next(((stage, one) for stage, one in named if one.state in (*UNWELL, "held", "unknown")), None)
    if wrong is None:
        what = "Complete" if whole.state == "done" else f"Nothing ended it: it is {whole.state}"
        return Story(run.name, whole.state, what, whole.reason, "", "", whole.next or f"mmlaunch status {run.name}")
    stage, now = wrong
    if not stage.paths.resolved.is_file():
        what = f"Stage {stage.name}: its run directory is gone"
        again = "submit the pipeline again: finished stages are kept"
        return Story(run.name, whole.state, what, stage.run, "", "", again)
    story = of(stage.paths)
    blocked = view.in_state(pipeline.BLOCKED)
    waits = f" {', '.join(blocked)} wait{'s' if len(blocked) == 1 else ''} for it." if blocked else ""
    place = f"{now.run}/{story.place}" if story.place else ""
    following = f"mmlaunch resume {run.name}    {stage.name} alone: {story.next}"
    what, done = f"Stage {stage.name}: {story.what}", f"{story.done}{waits}".strip()
    return Story(run.name, whole.state, what, story.evidence, place, done, following)


def _of_task(run: RunPaths, now: Status) -> Story:
    """The story of the first shard that did not end well stands for all."""
    states = status.of_all(shards.all_shards(run))
    wrong = [(shard, one) for shard, one in zip(shards.all_shards(run), states, strict=True) if one.state in UNWELL]
    if not wrong:
        what = {"done": "Complete", "failed": "Complete, and too many rows failed"}.get(
            now.state, f"Nothing ended it: it is {now.shown_state}"
        )
        following = now.next or f"mmlaunch status {run.name}"
        if now.state == "failed":
            following += f"; or let more rows fail: mmlaunch resume {run.name} -s objective.max_failed=SHARE"
        return Story(run.name, now.state, what, now.reason, "", "", following)
    first, story = wrong[0][0], of(wrong[0][0])
    what = (
        f"{len(wrong)} of {len(states)} shards {'is' if len(wrong) == 1 else 'are'} not done. {story.run}: {story.what}"
    )
    place = f"shards/{first.root.name}/{story.place}" if story.place else ""
    of_task = causes.named(_cause(ledger.skim(first.events).of_this_submission)).of_task
    again = story.next if of_task else f"mmlaunch resume {run.name}"
    following = f"{again}    {story.run} alone: mmlaunch logs {story.run}"
    return Story(run.name, now.state, what, story.evidence, place, story.done, following)


def _last_words(run: RunPaths) -> str:
    """The last line of the newest job script's log: what it said when it could not write into the ledger."""
    for log in sorted(batch_logs(run), key=lambda path: path.stat().st_mtime, reverse=True):
        lines = log.read_text(errors="replace").rstrip().splitlines()
        if lines and not lines[-1].startswith("mmlaunch: attempt"):
            return f"{lines[-1][:200]} [{log.name}:{len(lines)}]"
    return ""


def _canceller(events: Events) -> str:
    """The user who asked mmlaunch for the end, or the scheduler's own command."""
    cancelling = events.last("cancelling")
    return str(cancelling.get("by")) if cancelling else choose.of_run(events).cancel_command


def _cause(events: Events) -> str:
    failed, ended = events.last("failed") or {}, events.last("ended") or {}
    return str(ended.get("cause", failed.get("cause", "crash")))


def _failed(run: RunPaths, now: Status, events: Events) -> Story:
    failed, ended = events.last("failed") or {}, events.last("ended") or {}
    cause = _cause(events)
    evidence = str(failed.get("evidence", ""))
    attempt = int(failed.get("attempt", now.attempt) or 1)
    done = f"{_history(events)} Not restarted: {ended.get('reason', '')}.".strip()
    place = locate(run, attempt, evidence)
    following = _following(run, cause, now, events)
    return Story(run.name, now.state, causes.named(cause).why, evidence, place, done, following)


def _following(run: RunPaths, cause: str, now: Status, events: Events) -> str:
    """What to type next."""
    attempt = int((events.last("failed") or {}).get("attempt", now.attempt) or 1)
    nodes = int((events.last("submitted") or {}).get("nodes", 1))
    stacks = run.attempt(attempt).stacks
    whole = shards.task_of(run) if causes.named(cause).of_task else None
    return causes.named(cause).next.format(run=(whole or run).name, attempt=attempt, double=2 * nodes, stacks=stacks)


def _history(events: Events) -> str:
    """`Restarted 3 times before: 2 x preempted, 1 x crash.`"""
    counts: dict[str, int] = {}
    for event in events.all("requeued"):
        counts[event["cause"]] = counts.get(event["cause"], 0) + 1
    if not counts:
        return ""
    total, parts = sum(counts.values()), ", ".join(f"{count} x {cause}" for cause, count in counts.items())
    return f"Restarted {total} time{'s' if total > 1 else ''} before: {parts}."


def locate(run: RunPaths, attempt: int, evidence: str) -> str:
    """The place of the log line that holds the end of the evidence: `attempts/1/logs/rank-0.out:123`."""
    paths = run.attempt(attempt)
    if shown := log_patterns.PLACE.search(evidence):
        logs = [paths.logs / shown.group(1), *(log for log in batch_logs(run) if log.name == shown.group(1))]
        if log := next((log for log in logs if log.is_file()), None):
            return f"{log.relative_to(run.root)}:{shown.group(2)}"
    message = evidence.rpartition(": ")[2].strip().splitlines()
    if not message or len(message[0]) < 4:
        return ""
    named = _RANK.match(evidence)  # what one rank said is not looked for in the log of another
    for log in [paths.rank_log(int(named.group(1)))] if named else paths.rank_logs:
        if not log.is_file():
            continue
        lines = log.read_text(errors="replace").splitlines()
        for number in range(len(lines), 0, -1):
            if message[0] in lines[number - 1]:
                return f"{log.relative_to(run.root)}:{number}"
    record = paths.rank_error(int(named.group(1))) if named else None
    return f"{record.relative_to(run.root)}:1" if record and record.is_file() else ""
