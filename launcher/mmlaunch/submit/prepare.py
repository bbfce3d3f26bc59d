"""Plans and renders a run without writing anything: what `submit` writes and `render` shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmlaunch.estimate.knowable import contradictions
from mmlaunch.load import Loaded, rundir, trained
from mmlaunch.load.plugins import Folders
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose
from mmlaunch.submit import plan as plans
from mmlaunch.submit.plan import Plan
from mmlaunch.submit.render import Renderer

if TYPE_CHECKING:
    from mmlaunch.run.pipeline import Membership
    from mmlaunch.run.shards import Definition


@dataclass(frozen=True)
class Texts:
    """The rendered files of a run."""

    script: str
    deepspeed: str


@dataclass(frozen=True)
class Prepared:
    """Everything that a submission writes."""

    loaded: Loaded
    plan: Plan
    texts: Texts
    beside: Path
    """The folder that the recipe stands in: its templates and the files of its reward functions are there."""
    definition: Definition | None = None
    """How the rows are split, where they are; counted once the recipe is about to be submitted."""
    trained: trained.Resolved | None = None
    """The trained models that the recipe starts from; None for a run that is resumed: it has pinned them."""
    stage: Membership | None = None
    """Of a stage: its pipeline, and what it needs of other stages."""
    later: tuple[str, ...] = ()
    """Files and folders that do not exist yet: other stages will make them."""
    held: bool = False
    """Whether it waits until it is released."""
    shares: RunPaths | None = None
    """Whose code and job folder it shares: of a point, those of its sweep."""

    @property
    def plugin_folders(self) -> Folders:
        """Where the user's reward functions are looked for."""
        return Folders(self.beside, self.plan.folder, self.plan.run)


def prepare(loaded: Loaded, cluster_name: str | None, later: tuple[str, ...] = ()) -> Prepared:
    """Plan and render a recipe on a cluster, the named one or the usual one. `later`: what does not exist yet."""
    name, cluster = choose.profile_here(cluster_name)
    models = trained.resolve(loaded, later)
    loaded = models.loaded
    recipe = loaded.recipe
    if problems := contradictions(recipe):
        raise loaded.placed(problems)
    if misfit := choose.problem(cluster, recipe.resources):
        raise loaded.placed([*models.missing, *misfit.problems])  # all mistakes at once
    folder = rundir.runs_folder()
    run = RunPaths(folder / rundir.next_name(recipe, name, folder))
    plan = plans.make(recipe, cluster, name, run, Path.cwd())
    renderer = Renderer(loaded.path.parent)
    texts = Texts(renderer.script(plan), renderer.deepspeed(plan))
    return Prepared(loaded, plan, texts, loaded.path.parent, trained=models, later=later)
