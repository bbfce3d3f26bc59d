"""The base of every section of a recipe, and how one mistake in it is reported.

Modules that define sections do without `from __future__ import annotations`: pydantic would compile each annotation's
text again, which is most of the time that the schema takes to import.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

Path = tuple[str | int, ...]


class Section(BaseModel):
    """A mapping of a recipe: every key known, nothing changed after validation."""

    # Built when first used: a command that reads no recipe, or only one section, does not pay for all of them.
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, defer_build=True)

    SHORT: ClassVar[str] = ""
    """The field that a single word stands for: `projector: mlp` is short for `projector: {kind: mlp}`."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {}
    """What people write for a field when they come from another tool: other name -> field."""

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        is_word = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        return {cls.SHORT: value} if cls.SHORT and is_word else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        if not cls.SHORT:
            return schema
        return {"anyOf": [dict(schema), dict(schema["properties"][cls.SHORT])], "title": cls.__name__}

    @classmethod
    def keys(cls) -> list[str]:
        """The keys as users write them."""
        return [field.alias or name for name, field in cls.model_fields.items()]


def mistake(what: str, right: str = "") -> PydanticCustomError:
    """An error for a field validator to raise: what is wrong; what would be right."""
    # The text goes in as context, since pydantic would treat braces in it as placeholders.
    return PydanticCustomError("mistake", "{what}", {"what": what, "right": right})


def refuse(section: str, mistakes: Iterable[tuple[Path, Any, PydanticCustomError]]) -> None:
    """Raise all mistakes of a model validator at once: (path below the section, the value, the mistake)."""
    details = [InitErrorDetails(type=error, loc=path, input=value) for path, value, error in mistakes]
    if details:
        raise ValidationError.from_exception_data(section, details)
