"""`objective`: what a run learns. A word (`dpo`) or a mapping (`{method: dpo, beta: 0.2}`)."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

from pydantic import Discriminator, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag, TypeAdapter, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from pydantic_core.core_schema import simple_ser_schema, tagged_union_schema, with_info_plain_validator_function

from mmlaunch.recipe.compared import Correctness, Evaluate
from mmlaunch.recipe.custom import Custom
from mmlaunch.recipe.inference import DropoutNtp, Predict, Score
from mmlaunch.recipe.method import Method
from mmlaunch.recipe.preference import PREFERENCES, Preference
from mmlaunch.recipe.reinforcement import Grpo, Ppo, Rloo
from mmlaunch.recipe.requirements import Requirements
from mmlaunch.recipe.rewards import TAGS as REWARD_TAGS
from mmlaunch.recipe.scalars import NotNegative, Positive
from mmlaunch.recipe.section import Mistake, mistake, rule


class Sft(Method):
    """Supervised fine-tuning on answers."""

    OBJECTIVE: ClassVar[str] = "sft"

    method: Literal["sft"] = "sft"
    """Supervised fine-tuning."""

    @property
    def requirements(self) -> Requirements:
        return Requirements(most=1)

    @property
    def metrics(self) -> tuple[str, ...]:
        return "accuracy", "token_accuracy"


class Reward(Method):
    """A reward model: a scoring head on the last token of each answer."""

    OBJECTIVE: ClassVar[str] = "reward"

    OTHER_NAMES: ClassVar[dict[str, str]] = {"center": "centre", "center_rewards_coefficient": "centre"}

    method: Literal["reward"] = "reward"
    """A reward model."""
    loss: Literal["ranked", "regression"] = "ranked"
    """ranked: Plackett-Luce over the answers in their order; regression: the score itself."""
    margin: bool = False
    """Subtract the score gap of a pair from its reward gap."""
    soft_labels: Positive | None = None
    """gamma: the label of a pair is sigmoid(gamma x score gap)."""
    centre: NotNegative = 0.0
    """Weight of the squared sum of an example's rewards; 0.01 keeps them near 0."""

    @property
    def has_scoring_head(self) -> bool:
        return True

    @property
    def requirements(self) -> Requirements:
        scores = self.loss == "regression" or self.margin or self.soft_labels is not None
        return Requirements(least=1 if self.loss == "regression" else 2, prompts=False, scores=scores)

    @property
    def metrics(self) -> tuple[str, ...]:
        return "reward", "reward_squared", "accuracy", "margin"

    @property
    def evaluation_metrics(self) -> list[str]:
        return ["eval/loss", "eval/reward", "eval/reward_spread", "eval/accuracy", "eval/margin"]

    @rule
    def _one_use_of_scores(self) -> Iterator[Mistake]:
        if self.loss == "regression" and (self.margin or self.soft_labels is not None):
            key = "margin" if self.margin else "soft_labels"
            yield (key,), None, mistake("regression fits the scores themselves", f"remove {key}, or loss: ranked")
        elif self.margin and self.soft_labels is not None:
            yield ("soft_labels",), None, mistake("margin uses the score gap already", "keep one of the two")


def objective_method(value: Any) -> Any:
    """The method of an objective in any of its forms: a word, a mapping, a section."""
    if isinstance(value, str):
        return str(value)
    return value.get("method", "preference") if isinstance(value, dict) else getattr(value, "method", "preference")


CHOOSES = ("objective", "method")
"""The value that decides which section reads the others; while it is mistaken, nobody knows what they mean."""

SECTIONS: dict[str, type[Method]] = {
    "sft": Sft, "reward": Reward, "preference": Preference, "ppo": Ppo, "grpo": Grpo, "rloo": Rloo,
    "predict": Predict, "evaluate": Evaluate, "score": Score, "dropout_ntp": DropoutNtp, "correctness": Correctness,
    "custom": Custom,
}  # fmt: skip
"""Every section that reads an `objective`: `custom` where a plugin is named, `preference` where no other method is."""

METHODS = (*(name for name in SECTIONS if name not in ("preference", "custom")), *PREFERENCES)
"""Every word that an `objective` may be."""

TAGS = REWARD_TAGS | {f"<{name}>" for name in SECTIONS}
"""What pydantic puts into the place of an error to say which section read it."""


def section_name(value: Any) -> str:
    """The name of the section that reads this objective."""
    method = objective_method(value)
    if not isinstance(method, str):
        return "preference"
    if ":" in method or method.endswith(".py"):
        return "custom"
    return method if method in SECTIONS else "preference"


def _tag(value: Any) -> str:
    return f"<{section_name(value)}>"


def _read(section: type[Method], value: Any, info: ValidationInfo) -> Method:
    return section.model_validate(value, context=info.context)


_UNION: Any = Union[tuple(Annotated[section, Tag(_tag(name))] for name, section in SECTIONS.items())]  # noqa: UP007  made of a table: `|` joins what is written out


class ReadByOne:
    """Metadata of a union of all sections. Only the one that reads an objective is built: all of them take as long to
    build as the rest of the schema, and every command would wait for them."""

    def __get_pydantic_core_schema__(self, union: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        readers: dict[Any, CoreSchema] = {
            _tag(name): with_info_plain_validator_function(partial(_read, kind)) for name, kind in SECTIONS.items()
        }
        return tagged_union_schema(readers, _tag, serialization=simple_ser_schema("any"))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(TypeAdapter(Annotated[_UNION, Discriminator(_tag)]).core_schema)


if TYPE_CHECKING:
    Objective = Method  # the rest of the code asks what every method has
else:
    Objective = Annotated[_UNION, ReadByOne()]
