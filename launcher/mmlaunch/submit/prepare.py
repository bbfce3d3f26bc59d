"""From a recipe to all that a submission would consist of; nothing is written. This is what `render` shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmlaunch.load import Loaded, rundir
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose
from mmlaunch.submit import plan as plans
from mmlaunch.submit.plan import Plan
from mmlaunch.submit.render import Renderer


@dataclass(frozen=True)
class Texts:
    """What was rendered for a run."""

    script: str
    deepspeed: str


@dataclass(frozen=True)
class Prepared:
    """Everything that a submission consists of; nothing is written yet."""

    loaded: Loaded
    plan: Plan
    texts: Texts


def prepare(loaded: Loaded, cluster_name: str | None) -> Prepared:
    """Plan and render."""
    name, cluster = choose.profile(cluster_name)
    recipe = loaded.recipe
    if misfit := choose.problem(cluster, recipe.resources):
        raise loaded.placed(misfit.problems)
    folder = rundir.runs_folder()
    run = RunPaths(folder / rundir.next_name(loaded, name, folder))
    plan = plans.make(recipe, cluster, name, run, Path.cwd())
    renderer = Renderer(loaded.path.parent)
    return Prepared(loaded, plan, Texts(renderer.script(plan), renderer.deepspeed(plan)))
