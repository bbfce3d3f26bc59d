"""One page about a run, a pipeline or a sweep, that opens in any browser: no script, nothing from outside."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from mmlaunch.errors import BadInput
from mmlaunch.monitor import gains, pipeline, report, rollouts, status, table, why
from mmlaunch.monitor.report import Report
from mmlaunch.monitor.state import Status
from mmlaunch.recipe import resolved
from mmlaunch.recipe.scalars import format_duration
from mmlaunch.results import charts, pictures
from mmlaunch.run import ledger, shards
from mmlaunch.run import pipeline as run_pipeline
from mmlaunch.run.ledger import Events
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose

TEMPLATE = "report.html.j2"
MOST = 60
"""The most runs of which a page shows everything; beyond, only their line."""


@dataclass(frozen=True)
class Sample:
    """An answer of the model, as a page shows it."""

    facts: tuple[tuple[str, str], ...]
    images: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """Everything that the page shows of one run."""

    name: str
    now: Status
    report: Report
    facts: tuple[tuple[str, str], ...]
    spent: tuple[tuple[str, float, str], ...]
    """Where the time went: what, its share, its length."""
    curves: list[charts.Curve]
    samples: tuple[Sample, ...]
    warnings: tuple[str, ...]
    scores: tuple[tuple[str, str, str, str], ...]
    """Of a task that evaluates, by source."""
    story: str
    gain: str
    recipe: str


def page(run: RunPaths) -> str:
    """The page as text."""
    now = time.time()
    view = pipeline.of(run) if run_pipeline.is_pipeline(run) else None
    if view is None:
        members = {run.name: run}
        states = status.of_all([run], whole=True)
    else:
        members = {stage.name: stage.paths for stage in view.definition.stages}
        states = list(view.stages)
    parts = [_part(name, paths, one, now) for (name, paths), one in zip(members.items(), states, strict=True)]
    lanes, length = charts.timeline({one.name: one.report for one in parts}, _starts(members))
    compared = table.of([run], None) if view is not None and view.definition.kind == "sweep" else None
    whole = view.whole if view is not None else states[0]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(resources.files("mmlaunch.templates").joinpath(TEMPLATE).read_text("utf-8"))
    return template.render(
        run=run,
        whole=whole,
        kind=view.definition.kind if view is not None else "run",
        graph=charts.graph(view, {one.name: one.gain.removeprefix("eval/") for one in parts})
        if view is not None
        else None,
        table=compared,
        fields=list(dict.fromkeys(field for row in compared.rows for field in row.values)) if compared else [],
        parts=parts[:MOST],
        left_out=len(parts) - len(parts[:MOST]),
        lanes=lanes,
        length=length,
        hours=sum(one.report.rank_hours for one in parts),
        written=run.recipe.read_text(encoding="utf-8", errors="replace") if run.recipe.is_file() else "",
        made=time.strftime("%Y-%m-%d %H:%M", time.localtime(now)),
        box=charts.BOX,
        size=(charts.WIDTH, charts.HEIGHT),
        shown=gains.shown,
    )


def _starts(members: Mapping[str, RunPaths]) -> dict[str, float]:
    """When each run began to wait: when it was released, or submitted."""
    starts = {}
    for name, run in members.items():
        events = ledger.read(_with_attempts(run).events)
        first = next((event for event in events if event["event"] in ("released", "submitted")), None)
        released = next((event for event in events if event["event"] == "released"), first)
        if released is not None and any(event["event"] == "started" for event in events):
            starts[name] = float(released["time"])
    return starts


def _with_attempts(run: RunPaths) -> RunPaths:
    """The run itself; of a task, its first shard stands for all."""
    return shards.shard(run, 0) if shards.is_task(run) else run


def _part(name: str, run: RunPaths, now: Status, moment: float) -> Part:
    events = ledger.read(run.events)
    one = report.of(_with_attempts(run), moment)
    made = rollouts.of(run)
    return Part(
        name=name,
        now=now,
        report=one,
        facts=tuple(_facts(run, now, one, events)),
        spent=tuple(_spent(one, events)),
        curves=charts.curves(events.events),
        samples=tuple(_samples(run, events, made)),
        warnings=tuple(made.warnings()) if made is not None else (),
        scores=_scores(run),
        story=_story(run, now),
        gain=gains.of(run),
        recipe=_text(run.resolved),
    )


def _story(run: RunPaths, now: Status) -> str:
    """What ended a run that did not end well."""
    if now.state not in (*why.UNWELL, "held"):
        return ""
    story = why.of(run)
    return " ".join(part for part in (f"{story.what}.", story.evidence, story.place, story.done) if part)


def _facts(run: RunPaths, now: Status, one: Report, events: Events) -> list[tuple[str, str]]:
    environment = _json(run.environment)
    submitted, ready = events.last("submitted") or {}, events.last("ready") or {}
    memory = [float(event["memory"]) for event in events.all("step") if isinstance(event.get("memory"), (int, float))]
    counted = {part: value for part, value in (ready.get("parameters") or {}).items() if isinstance(value, int)}
    git = environment.get("git") or {}
    facts = [
        ("run", now.run),
        ("method", now.method),
        ("state", now.shown_state + (f": {now.reason}" if now.reason else "")),
        ("attempts", str(len(one.attempts))),
        ("size", _counted(submitted, "node") + ", " + _counted(submitted, "rank")),
        ("parameters", ", ".join(f"{part} {value:,}" for part, value in counted.items())),
        ("goodput", f"{one.goodput:.1%} of {format_duration(round(one.allocated))}" if one.attempts else ""),
        ("GPU hours" if _gpus(run) else "rank hours", f"{one.rank_hours:.2f}" if one.attempts else ""),
        ("energy", _energy(events)),
        ("memory of the fullest GPU", f"{max(memory) / 1e9:.1f} GB" if memory else ""),
        ("steps done twice", str(one.lost_steps) if one.lost_steps else ""),
        ("gain", gains.of(run)),
        ("commit", f"{str(git.get('commit'))[:12]}{', with changes' if git.get('diff') else ''}" if git else ""),
        ("directory", str(run.root)),
    ]
    return [(name, value) for name, value in facts if value]


def _gpus(run: RunPaths) -> bool:
    """Whether each rank has a GPU."""
    try:
        return resolved.read(run.resolved).resources.gpus_per_node > 0
    except BadInput:
        return False


def _scores(run: RunPaths) -> tuple[tuple[str, str, str, str], ...]:
    """What the records of a task came to: source, rows, score, interval."""
    kept = _json(run.evaluation)
    named = [*(kept.get("by_source") or {}).items(), ("overall", kept.get("overall") or {})]
    return tuple(
        (name, str(one["n"]), f"{one['score']:.4f}", f"{one['low']:.4f} to {one['high']:.4f}")
        for name, one in named
        if isinstance(one, Mapping)
        and all(isinstance(one.get(key), (int, float)) for key in ("n", "score", "low", "high"))
    )


def _counted(submitted: Mapping[str, Any], what: str) -> str:
    count = submitted.get(f"{what}s", "?")
    return f"{count} {what}{'' if count == 1 else 's'}"


def _energy(events: Events) -> str:
    """What the site has counted, where it counts."""
    records = events.all("queued")
    joules = choose.of_run(events).energy(records) if records else None
    return f"{joules / 3.6e6:.2f} kWh" if joules else ""


def _spent(one: Report, events: Events) -> list[tuple[str, float, str]]:
    """Where the time between the submission and the end went."""
    productive = sum(attempt.productive for attempt in one.attempts)
    stalled = sum(float(event.get("stall") or 0) for event in events.all("checkpoint"))
    training = max(0.0, productive - stalled)
    rest = max(0.0, one.allocated - productive)
    total = one.queued + one.allocated
    named = (("training", training), ("saving", stalled), ("start-up, lost steps, ends", rest), ("queue", one.queued))
    return [(name, 100 * value / total, format_duration(round(value))) for name, value in named if total and value > 0]


def _samples(run: RunPaths, events: Events, made: rollouts.Rollouts | None) -> list[Sample]:
    evaluated = next((event for event in reversed(events.all("evaluated")) if event.get("samples")), {})
    shown: list[Sample] = []
    for one in [*(evaluated.get("samples") or ()), *(made.samples if made is not None else ())]:
        if not isinstance(one, Mapping):
            continue
        facts = tuple(
            (name, str(one[name])) for name in ("question", "truth", "answer", "score", "origin") if one.get(name)
        )
        files = [run.samples / Path(str(name)).name for name in one.get("images") or ()]
        sources = [pictures.source_of(str(path)) for path in files if path.is_file()]
        shown.append(Sample(facts, tuple(source for source in sources if source)))
    return shown


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _json(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
