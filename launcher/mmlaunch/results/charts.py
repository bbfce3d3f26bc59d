"""The geometry of a report's pictures: curves, the timeline of attempts, the graph of a pipeline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmlaunch.monitor.pipeline import View
from mmlaunch.monitor.report import Report
from mmlaunch.recipe.scalars import format_duration
from mmlaunch.run.ledger import Event, kind_of

WIDTH, HEIGHT = 320, 120
"""Of a curve, in the units of its picture."""
POINTS = 300
"""The most points of a curve: a screen shows no more."""
BOX = (168, 46)
GAP = (44, 16)
"""The size of a stage in a graph, and the space between two."""
LANE = 22
GB = "memory"
"""Bytes in the ledger."""
NOT_CURVES = ("step", "steps", "attempt", "time", "tokens_per_second", "left_out")
FIRST = ("loss", "accuracy", "reward", "kl_sequence", "grad_norm", "lr", "rate")
"""The curves that come first."""


@dataclass(frozen=True)
class Curve:
    """A number over the steps: all attempts in one line, the steps that were done twice as they were the last time."""

    name: str
    line: str
    """The points of an SVG polyline."""
    low: str
    high: str
    last: str
    steps: str
    dots: tuple[tuple[float, float], ...] = ()
    """Points that are drawn one by one, where there are few."""


@dataclass(frozen=True)
class Bar:
    """A part of a lane of the timeline, in percent of its width."""

    left: float
    width: float
    kind: str
    """waited, good, again, failed, live"""
    title: str


@dataclass(frozen=True)
class Lane:
    """The attempts of one run."""

    name: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Node:
    """A stage in the graph."""

    name: str
    x: int
    y: int
    state: str
    note: str


@dataclass(frozen=True)
class Graph:
    """A pipeline as boxes and lines."""

    nodes: tuple[Node, ...]
    lines: tuple[str, ...]
    """The paths from a stage to those that need it."""
    width: int
    height: int


def curves(events: Sequence[Event]) -> list[Curve]:
    """The curves of a run: what its steps logged, and what its evaluations measured."""
    steps, evaluated = dict[int, Event](), dict[int, Mapping[str, Any]]()
    for event in events:
        if kind_of(event) == "step":
            steps[int(event["step"])] = event
        elif kind_of(event) == "evaluated" and isinstance(event.get("metrics"), Mapping):
            evaluated[int(event["step"])] = event["metrics"]
    names = {name for event in steps.values() for name, value in event.items() if _number(value) is not None}
    ordered = sorted(names - {*NOT_CURVES}, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    drawn = [_curve(name, {step: event.get(name) for step, event in steps.items()}) for name in ordered if name != GB]
    drawn.append(_curve("memory, GB", {step: event.get(GB) for step, event in steps.items()}, 1e-9))
    held_out = sorted({name for metrics in evaluated.values() for name in metrics})
    drawn += [_curve(name, {step: metrics.get(name) for step, metrics in evaluated.items()}) for name in held_out]
    return [curve for curve in drawn if curve is not None]


def _curve(name: str, values: Mapping[int, Any], scale: float = 1.0) -> Curve | None:
    numbers = ((step, _number(value)) for step, value in sorted(values.items()))
    points = [(step, number * scale) for step, number in numbers if number is not None]
    if not points:
        return None
    every = max(1, math.ceil(len(points) / POINTS))
    kept = points[::every] if points[-1] in points[::every] else [*points[::every], points[-1]]
    low, high = min(value for _, value in points), max(value for _, value in points)
    first, last = points[0][0], points[-1][0]
    length = (last - first) or 1
    bottom, spread = (low, high - low) if high > low else (low - 0.5, 1.0)  # what is constant is drawn in the middle
    shown = [
        (round((step - first) / length * WIDTH, 1), round(HEIGHT - (value - bottom) / spread * HEIGHT, 1))
        for step, value in kept
    ]
    line = " ".join(f"{x:g},{y:g}" for x, y in shown)
    dots = tuple(shown) if len(shown) <= 12 else ()
    return Curve(name, line, _short(low), _short(high), _short(points[-1][1]), f"{first:,} to {last:,}", dots)


def _number(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e4 else f"{value:.2e}"


def timeline(reports: Mapping[str, Report], starts: Mapping[str, float]) -> tuple[list[Lane], str]:
    """A lane for each run, on one axis; and how long the axis is. `starts`: when each began to wait."""
    ends = {name: starts[name] + one.queued + one.allocated for name, one in reports.items() if name in starts}
    if not ends:
        return [], ""
    first = min(starts[name] for name in ends)
    length = max(max(ends.values()) - first, 1.0)
    lanes = []
    for name in ends:
        at, bars = starts[name] - first, list[Bar]()
        for attempt in reports[name].attempts:
            wait = f"attempt {attempt.number} waited {format_duration(round(attempt.waited))}"
            bars.append(Bar(100 * at / length, 100 * attempt.waited / length, "waited", wait))
            at += attempt.waited
            lasted = f"attempt {attempt.number} on {attempt.nodes}: {format_duration(round(attempt.lasted))}"
            title = f"{lasted}, ended by {attempt.cause}"
            bars.append(Bar(100 * at / length, max(0.4, 100 * attempt.lasted / length), _kind(attempt.cause), title))
            at += attempt.lasted
        lanes.append(Lane(name, tuple(bars)))
    return lanes, format_duration(round(length))


def _kind(cause: str) -> str:
    if cause in ("done", "goes on"):
        return "good" if cause == "done" else "live"
    return "again" if cause in ("saved", "preempted", "time limit", "cancelled") else "failed"


def graph(view: View, notes: Mapping[str, str]) -> Graph:
    """The stages from left to right, each behind those that it needs."""
    column: dict[str, int] = {}
    for stage in view.definition.stages:
        column[stage.name] = 1 + max((column[need] for need in stage.needs), default=-1)
    rows: dict[int, int] = {}
    nodes: dict[str, Node] = {}
    for stage, now in zip(view.definition.stages, view.stages, strict=True):
        x = column[stage.name]
        y = rows.setdefault(x, 0)
        rows[x] += 1
        place = (x * (BOX[0] + GAP[0]), y * (BOX[1] + GAP[1]))
        nodes[stage.name] = Node(stage.name, *place, now.state, notes.get(stage.name, ""))
    lines = []
    for stage in view.definition.stages:
        end = nodes[stage.name]
        for need in stage.needs:
            begin = nodes[need]
            x1, y1, x2, y2 = begin.x + BOX[0], begin.y + BOX[1] // 2, end.x, end.y + BOX[1] // 2
            half = (x1 + x2) // 2
            lines.append(f"M{x1} {y1} C{half} {y1} {half} {y2} {x2} {y2}")
    width = (max(column.values(), default=0) + 1) * (BOX[0] + GAP[0]) - GAP[0]
    height = max(rows.values(), default=1) * (BOX[1] + GAP[1]) - GAP[1]
    return Graph(tuple(nodes.values()), tuple(lines), width, height)
