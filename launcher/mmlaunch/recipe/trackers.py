"""`log.trackers`: experiment trackers that show the curves of a run beside those of other runs."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from mmlaunch.recipe.environment import hide_secrets, looks_secret
from mmlaunch.recipe.plugin import Plugin, must_be_plugin, plugin_of
from mmlaunch.recipe.scalars import FreeForm, Line
from mmlaunch.recipe.section import Section, mistake
from mmlaunch.recipe.suggest import closest

TRACKERS = ("wandb", "mlflow", "trackio")
"""Those that come with mmlaunch; each has one file of its name in `mmjobs/metrics/trackers`."""


class Tracker(Section):
    """A tracker has one run for each run of mmlaunch, continuous over all attempts."""

    SHORT: ClassVar[str] = "kind"
    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "name": "kind", "type": "kind", "mode": "online", "kwargs": "options", "args": "options",
        "experiment": "project", "experiment_name": "project", "entity": "options", "tags": "options",
        "group": "options",
    }  # fmt: skip

    kind: Annotated[Line, Field(examples=["wandb"])]
    """wandb, mlflow, trackio, or a class of your own: my_tracker.py:Tracker, package.module:Tracker."""
    project: Line = "mmlaunch"
    """The project, or MLflow's experiment."""
    online: Literal["auto", "always", "never"] = "auto"
    """auto: where the ranks reach the tracker's server and have its key; otherwise into `trackers/` of the run, from
    where the tracker's own command sends it later."""
    options: FreeForm = {}
    """More keyword arguments: of wandb.init, trackio.init or your own class; of MLflow the tags of the run."""

    @property
    def plugin(self) -> Plugin | None:
        """The class of the user's own."""
        return None if self.kind in TRACKERS else plugin_of(self.kind)

    @field_validator("options")
    @classmethod
    def _holds_no_secret(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, one in value.items():
            if looks_secret(name) or hide_secrets(str(one)) != str(one):
                right = "name its variable in env, such as WANDB_API_KEY: trackers read it from there"
                raise mistake(f"{name} looks like a secret, and recipes are written down", right)
        return value

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in TRACKERS:
            return value
        if ":" not in value:
            near = closest(value.replace("weights", "w"), TRACKERS)
            right = f"did you mean {near}?" if near else f"write one of {', '.join(TRACKERS)}, or my_tracker.py:Tracker"
            raise mistake(f"no tracker {value!r} comes with mmlaunch", right)
        return must_be_plugin(value, "Tracker").written
