"""The base of every method of `objective`: what the rest of the code asks of a method, instead of which class it is."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from mmlaunch.recipe.engine import Engine
from mmlaunch.recipe.plugin import Plugin
from mmlaunch.recipe.reference import ReferenceCopy
from mmlaunch.recipe.requirements import Requirements
from mmlaunch.recipe.rewards import RewardSource
from mmlaunch.recipe.section import Section


class Method(Section):
    """A method says of itself what it needs: a task, a scoring head, a reference model, data of a certain shape."""

    SHORT: ClassVar[str] = "method"

    TASK: ClassVar[str] = "train"
    """The file in `mmjobs/tasks` that runs it."""
    OBJECTIVE: ClassVar[str] = ""
    """The name of its loss in `mmjobs/objectives`; empty where nothing is trained."""
    READS_MODEL: ClassVar[bool] = True
    """Whether it uses the recipe's own model; otherwise only the models of its rewards."""
    ROLLOUTS: ClassVar[bool] = False
    """Whether it learns from answers that it generates, instead of the data's own."""

    if TYPE_CHECKING:  # each section declares the words that choose it
        method: str

    @property
    def has_scoring_head(self) -> bool:
        """Whether the model gives each answer a number, with a head that replaces the vocabulary's."""
        return False

    @property
    def requirements(self) -> Requirements:
        """What an example must have to be used."""
        return Requirements()

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what is measured beside the loss, as sums over a global batch."""
        return ()

    @property
    def evaluation_metrics(self) -> list[str]:
        """The names of what an evaluation measures; `checkpoint.best` may name one of them."""
        return ["eval/loss", *(f"eval/{name}" for name in self.metrics)]

    @property
    def measures(self) -> str:
        """What an evaluation measures, in words."""
        return f"it measures {', '.join(self.evaluation_metrics)}"

    @property
    def plugins(self) -> Mapping[tuple[str, ...], Plugin]:
        """The user's own code in its loss, by the place below `objective` that names it; rewards name theirs."""
        return {}

    @property
    def reference_source(self) -> str:
        """Where the log-probabilities of the reference model come from: precomputed, adapter off, copy, none."""
        return "none"

    @property
    def uses_reference(self) -> bool:
        """Whether the loss compares the policy with a reference model."""
        return False

    @property
    def reference_copy(self) -> ReferenceCopy | None:
        """How the reference model is kept, where it is a copy of its own."""
        return None

    @property
    def precomputes_reference(self) -> bool:
        """Whether the reference model is run before the first step, and never again."""
        return self.uses_reference and self.reference_source == "precomputed"

    @property
    def reward_sources(self) -> list[RewardSource]:
        """Where the rewards of answers come from, the value of `rewards`; empty where nothing is rewarded."""
        return []

    @property
    def compared_with(self) -> str | None:
        """A second file of predictions, whose answers are compared with those of the data."""
        return None

    @property
    def served_by(self) -> Engine | None:
        """What generates answers, where the ranks do not."""
        return None

    def frozen_stages(self, adapter_alone: bool, stage: int) -> list[int]:
        """The ZeRO stage of each whole model that is not trained and stands beside the policy, which is at `stage`."""
        return []

    def critic_stage(self, policy_stage: int) -> int | None:
        """The ZeRO stage of a value model that is trained beside the policy; None where there is none."""
        return None

    def critic_offload(self, policy_offload: str) -> str:
        """What of that value model is kept in CPU memory."""
        return policy_offload
