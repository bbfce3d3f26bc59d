"""Plans a sweep: a run directory for each point, and one job array for all of them; `pipeline` submits it.

Where the scheduler has no arrays, the points begin one after the other, as there is room.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mmlaunch.errors import Problem, RecipeError
from mmlaunch.load import load_recipe, rundir
from mmlaunch.load.pipeline import LoadedPipeline, LoadedStage
from mmlaunch.load.recipe import Loaded
from mmlaunch.load.sweep import sweep_of
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose
from mmlaunch.submit import pipeline
from mmlaunch.submit.halving import rungs_of
from mmlaunch.submit.pipeline import PreparedPipeline, PreparedStage
from mmlaunch.submit.prepare import prepare


def prepare_sweep(
    path: str,
    overrides: Sequence[str],
    cluster_name: str | None,
    at_once: int | None = None,
    halving: int | None = None,
) -> PreparedPipeline:
    """Plan and render all points without writing anything; raises `RecipeError` with the problems of all of them."""
    sweep = sweep_of(overrides)
    points, problems = list[Loaded](), list[Problem]()
    base = load_recipe(path, [*sweep.shared, *sweep.points[0]], partial(choose.misfits, cluster_name))
    rungs = rungs_of(base.recipe, len(sweep.points), halving) if halving else ()
    also = [f"stop_at={rungs[0]}"] if len(rungs) > 1 else []
    also += ["push_to.at_end=false"] if base.recipe.push_to is not None else []  # all points have one repository
    for number, values in enumerate(sweep.points):
        named = f"name={base.recipe.name}-{number}"
        try:
            points.append(load_recipe(path, [*sweep.shared, *values, named, *also]))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(list({(one.place, one.what): one for one in problems}.values()))
    folder, (profile, _) = rundir.runs_folder(), choose.profile(cluster_name)
    stages, finished = [], pipeline.Finished(folder)
    for number, (point, values) in enumerate(zip(points, sweep.points, strict=True)):
        prepared = prepare(point, cluster_name)
        key = pipeline.key_of(prepared, point.recipe, ())
        done = finished.find(key)
        run = done or prepared.plan.run
        stages.append(
            PreparedStage(str(number), (), run, key, prepared.plan.recipe, None if done else prepared, values)
        )
    name = base.recipe.name
    run = RunPaths(folder / rundir.free_name(name, "\0".join([profile, *(one.key for one in stages)]), folder))
    loaded = tuple(LoadedStage(one.name, point, (), ()) for one, point in zip(stages, points, strict=True))
    whole = LoadedPipeline(name, base.path, loaded, tuple(overrides))
    return PreparedPipeline(run, whole, profile, tuple(stages), "sweep", at_once, rungs, halving or 1)
