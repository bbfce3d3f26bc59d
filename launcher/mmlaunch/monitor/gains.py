"""What a run has gained: its first and its last evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmlaunch.recipe.reward_functions import FUNCTIONS, LOWER_IS_BETTER, WITHOUT_TRUTH
from mmlaunch.run import ledger
from mmlaunch.run.paths import RunPaths

MEASURES = ("right", "accuracy", "reward", "loss")
"""What is shown of an evaluation: the first of these that it has."""


def of(run: RunPaths) -> str:
    """`eval/accuracy 12.1 % -> 99.6 %`; the score of a task over rows; empty where nothing was measured."""
    if scored := _of_task(run):
        return scored
    evaluated = ledger.skim(run.events).all("evaluated")
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


def _of_task(run: RunPaths) -> str:
    """The overall score of a task whose results were looked at: of right answers, or of another measure by its name."""
    try:
        results = json.loads(run.evaluation.read_text(encoding="utf-8"))
        score, metrics = results["overall"]["score"], {one["metric"] for one in results["by_source"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    if not isinstance(score, (int, float)):
        return ""
    if metrics <= FUNCTIONS.keys() - {*LOWER_IS_BETTER, *WITHOUT_TRUTH}:
        return f"right {score:.1%}"
    return f"{metrics.pop() if len(metrics) == 1 else 'score'} {score:.4g}"
