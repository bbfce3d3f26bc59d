"""Successive halving (Jamieson and Talwalkar 2016): all points of a sweep train a little, the best ones go on.

The last act of the job script of the last point of a rung, on the batch host, resumes those that go on.
"""

from __future__ import annotations

import sys

from mmlaunch.errors import MmlaunchError, UserError
from mmlaunch.monitor import pipeline as monitor
from mmlaunch.monitor import table
from mmlaunch.monitor.shards import LIVE
from mmlaunch.recipe import Recipe
from mmlaunch.run import pipeline
from mmlaunch.run.paths import RunPaths
from mmlaunch.run.pipeline import Definition, Stage
from mmlaunch.submit import stages
from mmlaunch.submit.resume import resume


def rungs_of(recipe: Recipe, points: int, keep: int) -> tuple[int, ...]:
    """The steps of each rung; at the last one, which is that of the recipe, about one point is left."""
    if recipe.steps is None:
        raise UserError("--halving needs the number of steps: write -s steps=1000 instead of epochs")
    if not recipe.data.eval:
        raise UserError("--halving compares the points by their evaluation, and data.eval names nothing")
    if recipe.stop is not None:
        raise UserError("--halving decides which points go on, and stop ends a point before that: -s stop=null")
    count, left = 1, points
    while left >= keep:
        count, left = count + 1, left // keep
    steps = [max(1, recipe.steps // keep**power) for power in reversed(range(count))]
    return tuple(sorted(set(steps)))


def promote(parent: RunPaths) -> list[str]:
    """Let the best points of a rung go on, once all its points have ended; returns their names. May be repeated."""
    with pipeline.locked(parent):
        definition = pipeline.read(parent)
        view = monitor.of(parent)
        if not definition.rungs or any(one.state in LIVE for one in view.stages):
            return []
        following = _best(parent, definition)
        for stage, steps in following:
            try:
                resume(stage.run, [f"stop_at={steps}"], None, held=True)
            except MmlaunchError as error:
                print(f"mmlaunch: point {stage.name} does not go on: {error}", file=sys.stderr, flush=True)
    stages.release(parent)
    return [stage.name for stage, _ in following]


def _best(parent: RunPaths, definition: Definition) -> list[tuple[Stage, int]]:
    """The points that go on, and the step to which; none where the last rung is done."""
    whole = table.of([parent], None)
    reached = {row.name: row.now.saved_step or 0 for row in whole.rows if row.now.state == "done"}
    top = max((steps for steps in reached.values() if steps in definition.rungs[:-1]), default=None)
    if top is None or any(steps > top for steps in reached.values()):
        return []
    measured = [row for row in whole.rows if reached.get(row.name) == top and whole.metric in row.metrics]
    ranked = sorted(measured, key=lambda row: float(row.metrics[whole.metric]), reverse=not whole.lower_is_better)
    kept = {row.name for row in ranked[: max(1, len(ranked) // definition.keep)]}
    steps = definition.rungs[definition.rungs.index(top) + 1]
    return [(stage, steps) for stage in definition.stages if stage.name in kept]
