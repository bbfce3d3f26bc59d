"""`checkpoint`, `evaluate` and `log`: what a run writes down, and how often."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mmlaunch.recipe.scalars import Count, Every, Interval, Line, OneOrMore
from mmlaunch.recipe.section import Mistake, Section, mistake, rule
from mmlaunch.recipe.trackers import Tracker


class Checkpoint(Section):
    """`checkpoint`: a run also saves before it stops on a signal, and at its end."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "save_steps": "every", "interval": "every", "save_total_limit": "keep", "save_every": "every",
        "async": "background", "async_save": "background",
    }  # fmt: skip

    every: Annotated[list[Interval], OneOrMore(), Field(min_length=1)] = [Every(seconds=1800)]
    """30m, 500 steps, or both in a list: whichever comes first."""
    memory_every: Count | None = None
    """Every so many steps a checkpoint also goes into the memory of the nodes: an attempt that is restarted in the same
    job goes on from there. It needs twice the trained state in /dev/shm, which counts as memory of the job; what a
    killed job leaves there, a later run on that node frees after a day."""
    keep: Count = 3
    """How many of the newest checkpoints are kept."""
    keep_every: Count | None = None
    """A checkpoint at every multiple of this step is kept for ever."""
    best: Annotated[Line, Field(examples=["eval/accuracy"])] | None = None
    """The checkpoint with the best value of this metric is kept too."""
    best_is: Literal["highest", "lowest"] = "highest"
    """Whether the highest or the lowest value of `best` is the best one."""
    keep_base: Literal["auto", "always", "never"] = "auto"
    """Whether the run has a copy of the weights that it does not train, so that it can be resumed and exported although
    the model that it began with, or a reward model, has changed or is gone. auto: unless they come from the hub, or
    from a folder that this user cannot write to; from another run they are linked where the file system can."""
    background: bool = True
    """Train on while files are written. The last save, and one before a stop, always block."""
    on_full_disk: Literal["continue", "stop"] = "continue"
    """continue: train on without a new checkpoint, and say so; stop: end the run."""


class Evaluate(Section):
    """`evaluate`"""

    OTHER_NAMES: ClassVar[dict[str, str]] = {"num_sample_generations": "samples"}

    every: Interval | None = None
    """Left out: at the end only."""
    first: bool = False
    """Also before the first step: what training gains is then seen against it."""
    samples: Annotated[int, Field(ge=0)] = 4
    """Generated answers that are logged with their images."""


class Log(Section):
    """`log`"""

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "report_to": "trackers", "wandb": "trackers", "mlflow": "trackers", "trackio": "trackers",
        "tracker": "trackers", "logger": "trackers", "loggers": "trackers", "logging_steps": "every",
    }  # fmt: skip

    every: Count = 10
    """Steps between two lines of metrics."""
    tensorboard: bool = True
    """Write the curves for TensorBoard."""
    trackers: Annotated[list[Tracker], OneOrMore(), Field(examples=[["wandb"]])] = []
    """Experiment trackers that show them too: wandb, mlflow, trackio, or a class of your own."""

    @rule
    def _each_once(self) -> Iterator[Mistake]:
        kinds = [one.kind for one in self.trackers]
        for index, kind in enumerate(kinds):
            if kind in kinds[:index]:
                yield ("trackers", index), kind, mistake(f"{kind} stands here twice", "remove one of the two")
