"""`rewards`: where the rewards of reinforcement learning come from: reward runs and functions, each with a weight.

Each shipped function has one section of the same name here, with its options, and one function of that name in
`mmjobs/rollout/rewards/functions.py`.
"""

import re
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Union

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_serializer,
)
from pydantic_core import InitErrorDetails

from mmlaunch.recipe.scalars import Count, Duration, FreeForm, Line, NotNegative, Real, resolve_plain
from mmlaunch.recipe.section import Mistake, Section, mistake, rule
from mmlaunch.recipe.suggest import closest

CONTEXT = ("prompt", "origin", "finished")
"""What a function may name beside the answer, the truth and its options."""


class Exact(Section):
    """1 if the answer is the truth, but for spaces at its ends and in a row."""

    case: bool = False
    """Whether upper and lower case differ."""
    punctuation: bool = False
    """Whether punctuation counts."""


class Numeric(Section):
    """1 if the last number of the answer is that of the truth: 1,234 and 1/2 and 50% and 1e-3 are numbers."""

    tolerance: NotNegative = 0.0
    """How far the number may be from the truth."""
    relative: NotNegative = 1e-6
    """How far it may be from the truth, as a part of the truth; the larger of both holds."""


class Choice(Section):
    """1 if the answer chooses the letter of the truth, A to J: (B), B., "the answer is B"."""


class Boxed(Numeric):
    """1 if the last \\boxed{..} or "Final answer: .." is the truth: as numbers where both are, else as texts."""


class Math(Section):
    """1 if math-verify takes the answer and the truth for the same expression; it has to be installed."""

    digits: Annotated[int, Field(ge=1, le=15)] = 6
    """Numbers are compared after they are rounded to so many digits behind the point."""


def _regular(value: Any) -> Any:
    try:
        re.compile(value if isinstance(value, str) else "")
    except re.error as error:
        raise mistake(
            f"{str(value)!r} is no regular expression: {error}", "write one such as '<think>.*</think>.*'"
        ) from None
    return value


class Format(Section):
    """1 if the whole answer has a form."""

    pattern: Annotated[str, BeforeValidator(_regular), Field(min_length=1, examples=["'<think>.*</think>.*'"])]
    """A regular expression that the whole answer has to match; a point matches line ends too."""


class Length(Section):
    """Soft: 1 at the wanted length, less and less beyond it."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {"max": "most", "max_length": "most", "goal": "target"}

    target: Count | None = None
    """The wanted number of characters; 0 for an answer of none, and of twice as many."""
    most: Count | None = None
    """The most characters that cost nothing; 0 for an answer of twice as many."""

    @rule
    def _one_length(self) -> Iterator[Mistake]:
        if (self.target is None) == (self.most is None):
            what = "nothing says how long" if self.target is None else "both target and most say how long"
            yield (), None, mistake(what, "write one of the two: target: 400, or most: 400")


FUNCTIONS: dict[str, type[Section]] = {
    kind.__name__.lower(): kind for kind in (Exact, Numeric, Choice, Boxed, Math, Format, Length)
}
"""The shipped functions, and the section that reads the options of each."""

if TYPE_CHECKING:
    Options = Section | dict[str, Any]
else:
    Options = Union[(*FUNCTIONS.values(), FreeForm)]

WITHOUT_TRUTH = ("format", "length")
"""The shipped functions that look at the answer alone."""

TAGS = frozenset(f"<{name}>" for name in FUNCTIONS)
"""What stands in the place of an error to say which function's section read it."""

ONLY_RUN = ("path", "standardise")
"""The fields of a source that is a reward run."""
ONLY_FUNCTION = ("function", "options", "deadline")
"""The fields of a source that is a function."""

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


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
        return {"function" if str(word) in FUNCTIONS or ":" in str(word) else "path": word}

    @classmethod
    def replaced_by(cls, keys: Container[str]) -> Container[str]:
        """A function takes the place of a reward run, and the other way round."""
        return ONLY_RUN if "function" in keys else ONLY_FUNCTION if "path" in keys else ()

    @property
    def file(self) -> str | None:
        """The file that defines the function, as it is written: `score.py` of `score.py:reward`."""
        where, colon, _ = (self.function or "").rpartition(":")
        return where if colon and where.endswith(".py") else None

    @property
    def module(self) -> str | None:
        """The module that defines the function: `lab.rewards` of `lab.rewards:reward`."""
        where, colon, _ = (self.function or "").rpartition(":")
        return where if colon and not where.endswith(".py") else None

    @property
    def function_name(self) -> str:
        """The name of the function where it is defined."""
        return (self.function or "").rpartition(":")[2]

    @property
    def needs_truth(self) -> bool:
        """Whether it is known to compare with the data's own answer."""
        return self.function in FUNCTIONS and self.function not in WITHOUT_TRUTH

    @property
    def keywords(self) -> dict[str, Any]:
        """The options as keyword arguments."""
        return self.options.model_dump() if isinstance(self.options, Section) else self.options

    @field_validator("function")
    @classmethod
    def _names_function(cls, value: str | None) -> str | None:
        if value is None or value in FUNCTIONS:
            return value
        where, colon, name = value.rpartition(":")
        if not colon:
            near = closest(value, FUNCTIONS)
            right = f"did you mean {near}?" if near else f"write score.py:{value}, or one of {', '.join(FUNCTIONS)}"
            raise mistake(f"no function {value!r} comes with mmlaunch", right)
        if not name.isidentifier() or not (where.endswith(".py") or _MODULE.fullmatch(where)):
            raise mistake(f"{value!r} names no function", "write score.py:reward or package.module:reward")
        return value

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
