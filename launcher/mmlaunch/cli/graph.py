"""Draws a pipeline in a terminal: each stage below the last one that it needs."""

from __future__ import annotations

from mmlaunch.monitor.state import Status
from mmlaunch.run.pipeline import Definition, Stage


def drawn(definition: Definition) -> list[tuple[str, int]]:
    """The stages as lines of a tree, and the place of each in the definition."""
    order = {stage.name: place for place, stage in enumerate(definition.stages)}
    below: dict[str | None, list[Stage]] = {}
    for stage in definition.stages:
        above = max(stage.needs, key=order.__getitem__, default=None)
        below.setdefault(above, []).append(stage)
    lines: list[tuple[str, int]] = []

    def draw(name: str | None, indent: str) -> None:
        stages = below.get(name, [])
        for index, stage in enumerate(stages):
            last = index == len(stages) - 1
            branch, more = ("", "") if name is None else ("└─ ", "   ") if last else ("├─ ", "│  ")
            lines.append(("  ".join((f"{indent}{branch}{stage.name}", *stage.values)), order[stage.name]))
            draw(stage.name, indent + more)

    draw(None, "")
    return lines


def others(definition: Definition, stage: Stage) -> str:
    """The needs of a stage that its place in the tree does not show."""
    order = [one.name for one in definition.stages]
    above = max(stage.needs, key=order.index, default=None)
    rest = [need for need in stage.needs if need != above]
    return f"also needs {', '.join(rest)}" if rest else ""


def state_of(stage: Stage, now: Status) -> str:
    """`done, from an earlier pipeline`; otherwise as of any run."""
    return "done before" if stage.reused and now.state == "done" else now.shown_state
