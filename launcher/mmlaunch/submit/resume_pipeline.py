"""Goes on with a pipeline: what did not end well is submitted again, and what was not released is released."""

from __future__ import annotations

from collections.abc import Sequence

from mmlaunch.errors import MachineError, UserError
from mmlaunch.load.overrides import split
from mmlaunch.monitor import pipeline as monitor
from mmlaunch.monitor.why import UNWELL
from mmlaunch.recipe.suggest import closest
from mmlaunch.run import pipeline, shards
from mmlaunch.run.paths import RunPaths
from mmlaunch.submit import stages
from mmlaunch.submit.halving import promote
from mmlaunch.submit.resume import resume
from mmlaunch.submit.resume_task import resume_task


def resume_pipeline(run: RunPaths, overrides: Sequence[str], cluster_name: str | None) -> list[str]:
    """Submit again the stages that failed, were lost or were cancelled; returns the names of the stages that go on.

    Those that need them wait for them, as they did before.
    """
    view = monitor.of(run)
    if not pipeline.is_submitted(run):
        what = f"{run.name} was not submitted to its end: none of its stages begins"
        raise MachineError(f"{what}; mmlaunch cancel {run.name}, and submit it again")
    changes = _of_stages(view.definition, overrides)
    again = [
        stage
        for stage, now in zip(view.definition.stages, view.stages, strict=True)
        if now.state in UNWELL or stage.name in changes
    ]
    held = [stage for stage, now in zip(view.definition.stages, view.stages, strict=True) if now.state == "held"]
    if not again and not held and (promoted := promote(run)):
        return promoted
    if not again and not held and not monitor.missed(view):
        whole = view.whole
        raise UserError(f"{run.name} is {whole.state}: {whole.reason}; mmlaunch status {run.name}")
    for stage in again:
        own = changes.get(stage.name, ())
        if shards.is_task(stage.paths):
            resume_task(stage.paths, own, cluster_name, held=True)
        else:
            resume(stage.run, own, cluster_name, held=True)
    for stage in held:  # a controller that crashed may have forgotten that it was released
        stages.release_job(stage.paths)
    released = [*(stage.name for stage in held), *stages.release(run)]
    return [*released, *(stage.name for stage in again if stage.name not in released)]


def _of_stages(definition: pipeline.Definition, overrides: Sequence[str]) -> dict[str, list[str]]:
    """What changes in the recipe of each stage: `stages.ppo.optim.lr=1e-6`."""
    names = [stage.name for stage in definition.stages]
    changes: dict[str, list[str]] = {}
    for override in overrides:
        path, _, _ = split(override)
        head, _, rest = path.strip().partition(".")
        name, _, inner = rest.partition(".")
        if head != "stages" or not inner:
            raise UserError(f"-s {override}: of which stage? write -s stages.{names[-1]}.{override}")
        if name not in names:
            near = closest(name, names)
            raise UserError(f"-s {override}: no stage {name}; {f'did you mean {near}?' if near else ', '.join(names)}")
        changes.setdefault(name, []).append(override.strip().removeprefix(f"stages.{name}."))
    return changes
