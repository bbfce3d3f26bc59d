"""The state of a task that is split into shards: derived from the states of its shards, never stored."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from mmlaunch.errors import BadInput
from mmlaunch.monitor.state import Status, ends_about
from mmlaunch.recipe import resolved
from mmlaunch.recipe.inference import Inference
from mmlaunch.run.paths import RunPaths

BEYOND_REPAIR = ("failed", "lost", "cancelled", "unknown", "held")
"""The states of a shard that ends, or waits, until a user does something."""
LIVE = ("running", "starting", "restarting", "cancelling", "pending", "submitted", "perhaps submitted", "waiting")
_ORDER = (*LIVE, *BEYOND_REPAIR)
"""The state of a task is the first of these that one of its shards is in."""


def joined(run: RunPaths, own: Status, shards: Sequence[Status]) -> Status:
    """The status of a task. `own` is what its own ledger tells: how it was submitted."""
    counts = Counter(one.state for one in shards)
    failed = sum((Counter(one.failed_rows) for one in shards), Counter[str]())
    rows, done = sum(one.steps or 0 for one in shards), sum(one.step or 0 for one in shards)
    rate = sum(one.rate or 0.0 for one in shards) or None
    state = next((name for name in _ORDER if counts[name]), "done")
    too_many = state == "done" and failed.total() > 0 and failed.total() > _allowed(run) * rows
    state = "failed" if too_many else state
    shown = ", ".join(f"{counts[name]} {name}" for name in ("done", *_ORDER) if counts[name])
    reason = f"{len(shards)} shard{'s' if len(shards) > 1 else ''}: {shown}"
    if failed:
        reasons = ", ".join(f"{count} x {name}" for name, count in failed.most_common())
        reason += f"; {failed.total()} of {rows} rows failed ({reasons})"
    reason += ", more than objective.max_failed allows" if too_many else ""
    return replace(
        own,
        state=state,
        attempt=max((one.attempt for one in shards), default=0),
        step=done,
        steps=rows,
        rate=rate,
        next=_next(run.name, state, too_many, rows - done, rate),
        reason=reason,
        failed_rows=dict(failed),
        torn_lines=sum((one.torn_lines for one in shards), own.torn_lines),
        silent=any(one.silent for one in shards),
    )


def _next(name: str, state: str, too_many: bool, left: int, rate: float | None) -> str:
    if state == "done" or too_many:
        return f"mmlaunch results {name}"
    if state in ("failed", "lost", "cancelled"):
        return f"mmlaunch why {name}"
    if state == "running" and rate:
        return ends_about(time.time(), left / rate)
    return "" if state in LIVE else f"mmlaunch status {name}"


def _allowed(run: RunPaths) -> float:
    """The share of rows that may fail."""
    try:
        task = resolved.read(run.resolved).objective
    except BadInput:
        return 0.0
    return task.max_failed if isinstance(task, Inference) else 0.0
