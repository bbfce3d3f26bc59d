"""What a run has gained: its first and its last evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmlaunch.run import ledger
from mmlaunch.run.paths import RunPaths

MEASURES = ("right", "accuracy", "reward", "loss")
"""What is shown of an evaluation: the first of these that it has."""


def of(run: RunPaths) -> str:
    """`eval/accuracy 12.1 % -> 99.6 %`; the score of a task that evaluates; empty where nothing was measured."""
    if (score := _of_task(run)) is not None:
        return f"right {score:.1%}"
    evaluated = ledger.read(run.events).all("evaluated")
    if not evaluated:
        return ""
    name = measure(evaluated[-1].get("metrics") or {})
    values = [event["metrics"].get(name) for event in (evaluated[0], evaluated[-1])]
    first, last = (shown(name, value) for value in values)
    return f"{name} {first} -> {last}" if len(evaluated) > 1 else f"{name} {last}"


def measure(metrics: Mapping[str, Any]) -> str:
    """The name of the metric that says best what was learnt."""
    ends = [(name, name.rpartition("/")[2]) for name in metrics]
    return next((name for wanted in MEASURES for name, end in ends if end == wanted), next(iter(metrics), ""))


def shown(name: str, value: object) -> str:
    """`99.6 %`, `0.213`."""
    if not isinstance(value, (int, float)):
        return "?"
    is_share = name.rpartition("/")[2] in ("accuracy", "right") and 0 <= value <= 1
    return f"{value:.1%}" if is_share else f"{value:.4g}"


def _of_task(run: RunPaths) -> float | None:
    """The overall score of a task whose results were looked at."""
    try:
        score = json.loads(run.evaluation.read_text(encoding="utf-8"))["overall"]["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(score) if isinstance(score, (int, float)) else None
