"""The scalar values of a recipe: durations, shares, sizes, one-line texts, and their error messages.

YAML's own guesses are not used: a plain scalar arrives here as its text, and the field says what it means. So
`24:00:00` is a time, `5e-6` a number, `no` a text where a text is wanted.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, PydanticUseDefault
from pydantic_core.core_schema import no_info_before_validator_function

from mmlaunch.recipe.section import mistake


class Plain(str):
    """The text of an unquoted YAML scalar, which free-form sections still resolve to a number or a truth value."""


_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NO_NUMBER = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d{1,2})(?::(\d{1,2}))?")
_PARTS = re.compile(r"(\d+(?:\.\d+)?)(sec|min|[smhd])")
_LONGEST = 366 * 86400
_SIZE = re.compile(r"0*([0-9]+)\s*([KMGT])(?:i?B)?", re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029]")
"""Characters that stand for no text on one line."""


def resolve_plain(value: Any) -> Any:
    """YAML 1.2's core types for a free-form section: integers, floats, true and false; everything else is text."""
    if isinstance(value, dict):
        return {str(key): resolve_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve_plain(item) for item in value]
    if not isinstance(value, Plain):
        return value
    if _NO_NUMBER.fullmatch(value):
        raise mistake(f"{str(value)!r} is not a finite number", "write a number such as 5e8")
    if _INTEGER.fullmatch(value) and len(value) < 19:
        return int(value)
    if _FLOAT.fullmatch(value):
        if not math.isfinite(float(value)):
            raise mistake(f"{value[:20]!r} is not a finite number", "write a number such as 5e8")
        return float(value)
    return {"true": True, "false": False}.get(value, str(value))


def parse_duration(value: Any) -> int:
    """Seconds of `24:00:00`, `1-12:00:00`, `30m`, `2h30m`, `90s`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value  # already seconds: a default, or a recipe built in Python
    right = "write 30m, 2h, 90s, 24:00:00 or 2-00:00:00"
    text = _text(value, right)
    if clock := _CLOCK.fullmatch(text):
        days, first, second, third = clock.groups()
        if third is None and days is None:
            raise mistake(f"{text!r} could be hours and minutes or minutes and seconds", f"write {first}:{second}:00")
        if int(second) > 59 or int(third or 0) > 59:
            raise mistake(f"{text!r} is not a time: minutes and seconds end at 59", right)
        return ((int(days or 0) * 24 + int(first)) * 60 + int(second)) * 60 + int(third or 0)
    parts = _PARTS.findall(text.replace(" ", ""))
    if parts and "".join(number + unit for number, unit in parts) == text.replace(" ", ""):
        return round(sum(float(number) * _UNITS[unit] for number, unit in parts))
    if _FLOAT.fullmatch(text):
        raise mistake(f"{text!r} has no unit", f"write {text}s, {text}m or {text}h")
    raise mistake(f"{text!r} is not a duration", right)


def _text(value: Any, right: str) -> str:
    """The text of a scalar; refuses a mapping, a list and an empty value."""
    if value is None or isinstance(value, (dict, list)):
        what = "has no value" if value is None else f"is a {'mapping' if isinstance(value, dict) else 'list'}"
        raise mistake(what, right)
    return str(value).strip()


def format_duration(seconds: int) -> str:
    """The shortest way to write a duration that reads back as the same."""
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds % size == 0 and 0 < seconds < 100 * size:
            return f"{seconds // size}{unit}"
    if seconds < 120:
        return f"{seconds}s"
    hours, rest = divmod(seconds, 3600)
    return f"{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"


def _positive_duration(value: Any) -> int:
    try:
        seconds = parse_duration(value)
    except (OverflowError, ValueError) as error:
        if isinstance(error, PydanticCustomError):
            raise
        seconds = _LONGEST + 1
    if seconds > _LONGEST:
        raise mistake(f"{str(value)[:40]!r} is longer than a year", "write 24:00:00 or 2-00:00:00")
    if seconds <= 0:
        raise mistake(f"{value!r} is no time at all", "write 30m, 2h or 24:00:00")
    return seconds


Duration = Annotated[
    int,
    BeforeValidator(_positive_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["30m", "24:00:00", "2-00:00:00"]}),
]
"""Seconds, written with a unit."""


def _size(value: Any) -> str:
    match = _SIZE.fullmatch(_text(value, "write 64G, 900M or 1T"))
    if not match or not int(match.group(1)[:9]):
        raise mistake(f"{str(value)!r} is not a memory size", "write 64G, 900M or 1T")
    return f"{int(match.group(1))}{match.group(2).upper()}"


MemorySize = Annotated[str, BeforeValidator(_size), WithJsonSchema({"type": "string", "examples": ["64G"]})]
"""Slurm's spelling: a whole number and K, M, G or T."""


def bytes_of(size: str) -> int:
    """The bytes of a memory size; K, M, G and T are powers of 1,024, as for Slurm."""
    return int(size[:-1]) << 10 * (1 + "KMGT".index(size[-1]))


def _share(value: Any) -> float:
    text = _text(value, "write 3% or 0.03")
    number = text.removesuffix("%").strip()
    if not _FLOAT.fullmatch(number):
        raise mistake(f"{text!r} is not a share", "write 3% or 0.03")
    share = float(Decimal(number) / 100 if text.endswith("%") else number)
    if not 0 <= share <= 1:
        raise mistake(f"{text!r} is not between 0 and 1", "write 3% or 0.03")
    return share


Share = Annotated[float, BeforeValidator(_share), WithJsonSchema({"type": ["number", "string"]})]
"""A part of a whole: `3%` or `0.03`."""


def _reject_control(value: str) -> str:
    if match := CONTROL.search(value):
        raise mistake(f"holds a {json.dumps(match.group())} character", "write it on one line, in plain text")
    if not value.strip():
        raise mistake("is empty", "write a text or remove the key")
    return str(value)


Line = Annotated[str, BeforeValidator(lambda value: _reject_control(value) if isinstance(value, str) else value)]
"""A text on one line: it may stand in a script, a log and a terminal."""

STAGE = "stage:"
"""In a pipeline, `stage:sft` stands for what that stage makes."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""How the Hugging Face hub names a model."""

SLURM_WORD = re.compile(r"[A-Za-z0-9_.,:;/%@+=~\[\]()|&*!{}^-]+")
"""What may stand unquoted on an #SBATCH line."""


def _word(value: Any) -> Any:
    if isinstance(value, str) and not SLURM_WORD.fullmatch(value):
        raise mistake(f"{value!r} cannot stand on an #SBATCH line", "use letters, digits and . _ - , : /")
    return value


Word = Annotated[Line, BeforeValidator(_word)]
"""A text that may stand as one word on an #SBATCH line."""


def _words(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    right = "write a list of words: [a100, h100]"
    if not value:
        raise mistake("is an empty list", right)
    for item in value:
        if not isinstance(item, str) or not item.strip() or "," in item:
            raise mistake(f"{item!r} is no word of a list", right)
    return ",".join(value)


Words = Annotated[
    Word,
    BeforeValidator(_words),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""Several of them: a list, or the same with commas between."""

Real = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10**9)]

FreeForm = Annotated[dict[str, Any], BeforeValidator(resolve_plain)]
"""A mapping whose content this schema does not check."""


@dataclass(frozen=True)
class Every:
    """How often: after so many steps, or after so much time."""

    steps: int | None = None
    seconds: int | None = None

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.steps is not None else format_duration(self.seconds or 0)


def _every(value: Any) -> Every:
    if isinstance(value, Every):
        return value
    text = _text(value, "write 500 steps or 30m")
    number = text.removesuffix("steps").removesuffix("step").strip()
    if _INTEGER.fullmatch(number):
        if len(number) > 9 or int(number) < 1:
            raise mistake(f"{text[:40]!r} would never happen", "write 500 steps or 30m")
        return Every(steps=int(number))
    return Every(seconds=_positive_duration(text))


Interval = Annotated[
    Every,
    BeforeValidator(_every),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["30m", "500 steps", 500]}),
]
"""`30m` or `500 steps`."""


@dataclass(frozen=True)
class Warmup:
    """The length of the warm-up: a share of all steps, or a number of steps."""

    steps: int | None = None
    share: float | None = None

    def of(self, total: int) -> int:
        """The number of warm-up steps of a run of `total` steps."""
        return min(total, self.steps if self.steps is not None else round((self.share or 0.0) * total))

    def __str__(self) -> str:
        if self.steps is not None:
            return f"{self.steps} steps"
        return f"{(Decimal(str(self.share or 0)) * 100).normalize():f}%"


def _warmup(value: Any) -> Warmup:
    if isinstance(value, Warmup):
        return value
    text = _text(value, "write 3% (of all steps) or 100 steps")
    number = text.removesuffix("steps").removesuffix("step").strip()
    if _INTEGER.fullmatch(number) and len(number) <= 9 and int(number) >= 0:
        return Warmup(steps=int(number))
    if text.endswith("%") or _FLOAT.fullmatch(text):
        return Warmup(share=_share(text))
    raise mistake(f"{text!r} is not a warm-up", "write 3% (of all steps) or 100 steps")


WarmupLength = Annotated[
    Warmup,
    BeforeValidator(_warmup),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": ["string", "number"], "examples": ["3%", "100 steps"]}),
]


class OneOrMore:
    """Metadata of a list type: a single item is read as a list of one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(listed, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        several = handler(schema)
        return {"anyOf": [several, several["items"]]}


def listed(value: Any) -> Any:
    """A list, where a single item may stand for one."""
    return [value] if isinstance(value, (str, int, float, dict, Every)) else value


def use_default_for_none(value: Any) -> Any:
    """An empty value (`data:` and nothing after it) means the default."""
    if value is None:
        raise PydanticUseDefault
    return value
