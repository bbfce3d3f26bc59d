"""The table of a sweep, or of any runs: what is special of each, how it stands, what it has measured, which is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmlaunch.errors import BadInput, UserError
from mmlaunch.monitor import gains, status
from mmlaunch.monitor.state import Status
from mmlaunch.recipe import resolved
from mmlaunch.recipe.suggest import closest
from mmlaunch.run import ledger, pipeline
from mmlaunch.run.paths import RunPaths

LOWER = ("loss", "perplexity", "kl")
"""The beginnings of metrics that are better when they are lower."""


@dataclass(frozen=True)
class Row:
    """One run."""

    name: str
    values: Mapping[str, str]
    """What is special of it: the fields that a sweep changes."""
    now: Status
    metrics: Mapping[str, Any]
    """Of its last evaluation."""

    def as_json(self) -> dict[str, Any]:
        return {"point": self.name, "values": dict(self.values), "metrics": dict(self.metrics), **self.now.as_json()}


@dataclass(frozen=True)
class Table:
    """All runs, and the best of those that measured the metric."""

    rows: tuple[Row, ...]
    metric: str
    best: Row | None

    @property
    def lower_is_better(self) -> bool:
        return self.metric.rpartition("/")[2].startswith(LOWER)


def of(runs: Sequence[RunPaths], metric: str | None) -> Table:
    """The table of these runs; of a sweep or a pipeline, of all its points or stages."""
    members: list[tuple[str, RunPaths, Mapping[str, str]]] = []
    for run in runs:
        if pipeline.is_pipeline(run):
            members += [(one.name, one.paths, _values(one)) for one in pipeline.read(run).stages]
        else:
            members.append((run.name, run, {}))
    states = status.of_all([run for _, run, _ in members], whole=True)
    rows = tuple(
        Row(name, values, now, _metrics(run)) for (name, run, values), now in zip(members, states, strict=True)
    )
    wanted = _metric(rows, metric, [run for _, run, _ in members])
    measured = [row for row in rows if isinstance(row.metrics.get(wanted), (int, float))]
    whole = Table(rows, wanted, None)
    if any(pipeline.is_pipeline(run) and pipeline.read(run).kind == "pipeline" for run in runs):
        return whole  # its stages do different things
    furthest = max((row.now.step or 0 for row in measured), default=0)  # fewer steps are no fair comparison
    last = [row for row in measured if (row.now.step or 0) == furthest]
    choose = min if whole.lower_is_better else max
    return replace(whole, best=choose(last, key=lambda row: float(row.metrics[wanted]), default=None))


def _values(stage: pipeline.Stage) -> dict[str, str]:
    return dict(value.split("=", 1) for value in stage.values)


def _metrics(run: RunPaths) -> Mapping[str, Any]:
    evaluated = ledger.skim(run.events).last("evaluated") or {}
    metrics = dict(evaluated.get("metrics") or {})
    if not metrics and (step := ledger.skim(run.events).last("step")):
        metrics = {"loss": step.get("loss")}
    return metrics


def _metric(rows: Sequence[Row], wanted: str | None, runs: Sequence[RunPaths]) -> str:
    """The metric that the user names, that the recipe keeps the best checkpoint by, or that says most."""
    known = sorted({name for row in rows for name in row.metrics})
    if wanted is not None and known and wanted not in known:
        near = closest(wanted, known)
        raise UserError(f"no run has measured {wanted}; {f'did you mean {near}?' if near else ', '.join(known)}")
    if wanted is not None or not known:
        return wanted or "loss"
    try:
        best = resolved.read(runs[0].resolved).checkpoint.best
    except BadInput:
        best = None
    return best if best in known else gains.measure(dict.fromkeys(known))
