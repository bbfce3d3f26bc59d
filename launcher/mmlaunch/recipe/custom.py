"""`objective` of the user's own: a class in a plugin, and what the run has to give it."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from mmlaunch.recipe.plugin import PLUGIN_SCHEMA, Plugin, must_be_plugin
from mmlaunch.recipe.reference import ReferenceSync
from mmlaunch.recipe.requirements import Requirements
from mmlaunch.recipe.scalars import Count, FreeForm, Line, OneOrMore
from mmlaunch.recipe.section import Mistake, mistake, rule
from mmlaunch.recipe.with_reference import WithReference


def _class(value: object) -> object:
    return must_be_plugin(value, "MyObjective").written if isinstance(value, str) else value


class Custom(WithReference):
    """An objective of the user's own; its class follows the protocol in `mmjobs/objectives/objective.py`."""

    OBJECTIVE: ClassVar[str] = "custom"
    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "class": "method", "args": "options", "kwargs": "options", "parameters": "options", "ref": "reference",
        "ref_model": "reference", "sync_ref_model": "reference_sync", "metric": "metrics", "head": "scoring_head",
    }  # fmt: skip

    method: Annotated[
        Line, BeforeValidator(_class), WithJsonSchema(PLUGIN_SCHEMA), Field(examples=["my_objective.py:Focal"])
    ]
    """Its class: my_objective.py:Focal, relative to the recipe's folder, or package.module:Focal."""
    options: FreeForm = {}
    """Options that the class reads: `settings.options`."""
    metrics_listed: Annotated[list[Line], OneOrMore(), Field(alias="metrics", examples=[["confidence"]])] = []
    """What it measures beside the loss, for checkpoint.best and stop.metric: `confidence` is eval/confidence there."""
    answers: Count = 1
    """Answers that each example needs."""
    most_answers: Count | Literal["all"] | None = None
    """Answers that are used, the best first. Left out: as many as each example needs."""
    earlier_answers: bool | None = None
    """Whether the earlier answers of a conversation are in the loss as well. Left out: where one answer is used."""
    scores: bool = False
    """Whether it reads the scores that the data give to answers."""
    scoring_head: bool = False
    """Whether the model gives each answer a number, with a head that replaces the vocabulary's."""
    reference: Literal["precomputed", "adapter off", "copy", "none"] = "none"
    """Where the log-probabilities of a reference model come from; none: it uses no reference."""
    reference_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """The ZeRO stage of a copy: divided at 3, whole below. Left out: 3 where the policy's is 3."""
    reference_sync: ReferenceSync | None = None
    """Let a copy of the reference follow the policy (TR-DPO)."""

    @property
    def plugin(self) -> Plugin:
        """Where its class is defined."""
        return must_be_plugin(self.method, "MyObjective")

    @property
    def plugins(self) -> Mapping[tuple[str, ...], Plugin]:
        return {("method",): self.plugin}

    @property
    def has_scoring_head(self) -> bool:
        return self.scoring_head

    @property
    def requirements(self) -> Requirements:
        most = self.answers if self.most_answers is None else self.most_answers
        earlier = most == 1 if self.earlier_answers is None else self.earlier_answers
        return Requirements(
            least=self.answers, most=None if most == "all" else most, prompts=earlier, scores=self.scores
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.metrics_listed)

    @property
    def measures(self) -> str:
        return f"{super().measures}; list what else it measures in objective.metrics"

    @rule
    def _uses_what_it_needs(self) -> Iterator[Mistake]:
        most = self.most_answers
        if isinstance(most, int) and most < self.answers:
            what = f"each example needs {self.answers} answers, and only {most} would be used"
            yield ("most_answers",), most, mistake(what, f"write at least {self.answers}, or all")

    @rule
    def _one_head(self) -> Iterator[Mistake]:
        if self.scoring_head and self.reference != "none":
            what = "a model with a scoring head gives no log-probabilities to compare with"
            yield ("reference",), self.reference, mistake(what, "write reference: none, or scoring_head: false")
