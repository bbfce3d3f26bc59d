"""The base of every section of a recipe, and how one mistake in it is reported.

Modules that define sections, this one too, do without `from __future__ import annotations`: pydantic would compile each
annotation's text again for each section that inherits it, which is most of the time that the schema takes to import.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import chain, pairwise
from types import FunctionType
from typing import Any, ClassVar, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

Path = tuple[str | int, ...]
Mistake = tuple[Path, Any, PydanticCustomError]
"""The path below the section, the value that stands there, and what is wrong with it."""
Rule = Callable[[Any], Iterator[Mistake]]
R = TypeVar("R", bound=Rule)
S = TypeVar("S")

UNRULED = {"rules": False}
"""The context of a validation that leaves the rules for later."""


def rule(method: R) -> R:
    """Marks a method of a section that yields the mistakes of several values together.

    Each rule runs on its own. If a value that it reads is itself mistaken, only this rule is left out.
    """
    vars(method)["is_rule"] = True
    return method


class Section(BaseModel):
    """A mapping of a recipe: every key known, nothing changed after validation."""

    # Built when first used: a command that reads no recipe, or only one section, does not pay for all of them.
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, defer_build=True)

    SHORT: ClassVar[str] = ""
    """The field that a single word stands for: `projector: mlp` is short for `projector: {kind: mlp}`."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {}
    """What people write for a field when they come from another tool: other name -> field."""

    TRAINED: ClassVar[tuple[str, ...]] = ()
    """Its fields that name a trained model: a run, one of its checkpoints, or a Hugging Face directory."""

    RULES: ClassVar[tuple[Rule, ...]] = ()
    """Its methods that are marked as rules."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        methods = [method for method in vars(cls).values() if isinstance(method, FunctionType)]
        cls.RULES = (*cls.RULES, *(method for method in methods if hasattr(method, "is_rule")))

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, value: Any, handler: ModelWrapValidatorHandler[S], info: ValidationInfo) -> S:
        is_word = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        section = handler(cls.of_word(value) if cls.SHORT and is_word else value)
        if info.context != UNRULED:
            refuse(cls.__name__, chain.from_iterable(broken(section) for broken in cls.RULES))
        return section

    @classmethod
    def as_word(cls) -> str:
        """Its name as users write it: `yes_no` for YesNo."""
        return re.sub(r"\B([A-Z])", r"_\1", cls.__name__).lower()

    @classmethod
    def of_word(cls, word: Any) -> dict[str, Any]:
        """What a single word stands for."""
        return {cls.SHORT: word}

    @classmethod
    def replaced_by(cls, keys: Container[str]) -> Container[str]:
        """The keys of a section that go when a mapping with other values of these keys is laid over it."""
        return ()

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        for name, text in descriptions(cls).items():  # read now: a start of the command line need not wait for it
            schema["properties"][cls.model_fields[name].alias or name].setdefault("description", text)
        for name, default in cls.written_defaults().items():
            if "default" in schema["properties"].get(name, {}):
                schema["properties"][name]["default"] = default
        if not cls.SHORT:
            return schema
        return {"anyOf": [dict(schema), dict(schema["properties"][cls.SHORT])], "title": cls.__name__}

    @classmethod
    def written_defaults(cls) -> dict[str, Any]:
        """Its defaults as a recipe would write them: `30m`, and not the seconds that it becomes."""
        own = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return cls.model_construct().model_dump(mode="json", by_alias=True, include=own, warnings=False)

    @property
    def plain(self) -> bool:
        """Whether every value is its default."""
        fields = type(self).model_fields.items()
        return all(getattr(self, name) == field.get_default(call_default_factory=True) for name, field in fields)

    @classmethod
    def keys(cls) -> list[str]:
        """The keys as users write them."""
        return [field.alias or name for name, field in cls.model_fields.items()]


def descriptions(section: type[Section]) -> dict[str, str]:
    """The docstring of each field, from the sources of the class and of those that it inherits from."""
    found: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        if not (issubclass(cls, Section) and cls is not Section):
            continue
        body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]).body
        for field, text in pairwise(body):
            named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.target.id
            if named in section.model_fields and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[str(named)] = inspect.cleandoc(str(text.value.value))
    return found


def mistake(what: str, right: str = "") -> PydanticCustomError:
    """An error for a field validator to raise: what is wrong; what would be right."""
    # The text goes in as context, since pydantic would treat braces in it as placeholders.
    return PydanticCustomError("mistake", "{what}", {"what": what, "right": right})


def refuse(section: str, mistakes: Iterable[Mistake]) -> None:
    """Raise all mistakes of a validator at once."""
    details = [InitErrorDetails(type=error, loc=path, input=value) for path, value, error in mistakes]
    if details:
        raise ValidationError.from_exception_data(section, details)
