"""`rewards`: where the rewards of reinforcement learning come from: reward runs and functions, each with a weight."""

from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Union

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_serializer,
)
from pydantic_core import InitErrorDetails

from mmlaunch.recipe.plugin import Plugin, must_be_plugin, plugin_of
from mmlaunch.recipe.reward_functions import FUNCTIONS, LOWER_IS_BETTER, WITHOUT_TRUTH
from mmlaunch.recipe.scalars import STAGE, Duration, FreeForm, Line, Real, resolve_plain
from mmlaunch.recipe.section import Mistake, Section, mistake, rule
from mmlaunch.recipe.suggest import closest

if TYPE_CHECKING:
    Options = Section | dict[str, Any]
else:
    Options = Union[(*FUNCTIONS.values(), FreeForm)]

TAGS = frozenset(f"<{name}>" for name in FUNCTIONS)
"""What stands in the place of an error to say which function's section read it."""

ONLY_RUN = ("path", "standardise")
"""The fields of a source that is a reward run."""
ONLY_FUNCTION = ("function", "options", "deadline")
"""The fields of a source that is a function."""


class RewardSource(Section):
    """One source of rewards: a reward run, or a function."""

    SHORT: ClassVar[str] = "path"
    TRAINED: ClassVar[tuple[str, ...]] = ("path",)
    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "model": "path", "reward_model": "path", "run": "path", "fn": "function", "func": "function",
        "name": "function", "kind": "function", "args": "options", "kwargs": "options", "parameters": "options",
        "timeout": "deadline", "coef": "weight", "scale": "weight", "standardize": "standardise",
        "normalize": "standardise", "normalise": "standardise",
    }  # fmt: skip

    path: Annotated[Line | None, Field(examples=["runs/rm-llama3-8b"])] = None
    """A reward run or its export."""
    standardise: bool = True
    """By the mean and spread that are stored with the reward model."""
    function: Annotated[Line | None, Field(examples=["score.py:reward"])] = None
    """A shipped function, package.module:function, or file.py:function relative to the recipe's folder."""
    options: Annotated[Options, Field(validate_default=True)] = {}
    """The function's keyword arguments."""
    weight: Real = 1.0
    """Its weight in the sum of all sources."""
    deadline: Annotated[Duration, Field(examples=["10s"])] = 10
    """The longest time for one answer; a function that takes longer is killed, and this answer has no score."""

    @classmethod
    def of_word(cls, word: Any) -> dict[str, Any]:
        text = str(word)
        is_function = text in FUNCTIONS or (":" in text and not text.startswith(STAGE))
        return {"function" if is_function else "path": word}

    @classmethod
    def replaced_by(cls, keys: Container[str]) -> Container[str]:
        """A function takes the place of a reward run, and the other way round."""
        return ONLY_RUN if "function" in keys else ONLY_FUNCTION if "path" in keys else ()

    @property
    def plugin(self) -> Plugin | None:
        """The function of the user's own; None for a reward run and for a shipped function."""
        return plugin_of(self.function) if self.function is not None and self.function not in FUNCTIONS else None

    @property
    def needs_truth(self) -> bool:
        """Whether it is known to compare with the data's own answer."""
        return self.function in FUNCTIONS and self.function not in WITHOUT_TRUTH

    @property
    def metric(self) -> str:
        """What its scores are called: `relaxed`, `amber_coverage`, `reward`."""
        measure = self.keywords.get("measure") if self.function in FUNCTIONS else None
        return "_".join(str(part) for part in (self.function, measure) if part) if self.function else "reward"

    @property
    def lower_is_better(self) -> bool:
        """Whether its best score is 0."""
        return self.metric in LOWER_IS_BETTER

    @property
    def keywords(self) -> dict[str, Any]:
        """The options as keyword arguments."""
        return self.options.model_dump() if isinstance(self.options, Section) else self.options

    @field_validator("function")
    @classmethod
    def _names_function(cls, value: str | None) -> str | None:
        if value is None or value in FUNCTIONS:
            return value
        if ":" not in value:
            near = closest(value, FUNCTIONS)
            right = f"did you mean {near}?" if near else f"write score.py:{value}, or one of {', '.join(FUNCTIONS)}"
            raise mistake(f"no function {value!r} comes with mmlaunch", right)
        return must_be_plugin(value, "reward").written

    @field_validator("options", mode="wrap")
    @classmethod
    def _of_function(cls, value: Any, _: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """The options of a shipped function are read by its section; those of another are as they are written."""
        value = {} if value is None else value
        function = info.data.get("function")
        section = FUNCTIONS.get(function) if function else None
        if section is None:
            if not isinstance(value, dict):
                raise mistake(f"a mapping is wanted here, this is {value!r}", "write options: {name: value}")
            return resolve_plain(value)
        try:
            return section.model_validate(value, context=info.context)
        except ValidationError as error:
            raise _tagged(error, f"<{function}>") from None

    @model_serializer(mode="wrap")
    def _own_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the fields that only the other kind of source reads, so that what is written reads back."""
        others = ONLY_RUN if self.path is None else ONLY_FUNCTION
        return {name: value for name, value in handler(self).items() if name not in others}

    @rule
    def _one_kind(self) -> Iterator[Mistake]:
        if self.path is None and self.function is None:
            yield (), None, mistake("neither a reward run nor a function", "add path: runs/rm, or function: exact")
        elif self.path is not None and self.function is not None:
            what = "both a reward run and a function"
            yield ("function",), self.function, mistake(what, "keep one of them, or make it a list of two sources")

    @rule
    def _fields_of_its_kind(self) -> Iterator[Mistake]:
        if (self.path is None) == (self.function is None):
            return
        kind, others = ("a function", ONLY_RUN) if self.path is None else ("a reward run", ONLY_FUNCTION)
        for name in others:
            if name in self.model_fields_set and getattr(self, name) is not None:
                yield (name,), None, mistake(f"{kind} has none, this would do nothing", "remove it")


def _tagged(error: ValidationError, tag: str) -> ValidationError:
    """The same errors, with a tag in front of their places."""
    details = []
    for one in error.errors(include_url=False):
        context = one.get("ctx", {})
        kind = mistake(context["what"], context["right"]) if one["type"] == "mistake" else one["type"]
        details.append(InitErrorDetails(type=kind, loc=(tag, *one["loc"]), input=one["input"], ctx=context))
    return ValidationError.from_exception_data(error.title, details)
