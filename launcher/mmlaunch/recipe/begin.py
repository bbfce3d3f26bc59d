"""When a job may begin at the earliest: a time of day, a date, or so long after its submission."""

import re
from datetime import datetime, time
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from mmlaunch.recipe.scalars import format_duration, parse_duration
from mmlaunch.recipe.section import mistake

NOW = "now+"
_CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2})?")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2})?)?")
_RIGHT = "write 22:00, 2026-12-01T22:00 or now+2h"


def _begin(value: Any) -> str:
    text = "" if value is None or isinstance(value, (dict, list)) else str(value).strip()
    if text.startswith(NOW):
        return f"{NOW}{format_duration(_delay(text))}"
    try:
        if _CLOCK.fullmatch(text):
            time.fromisoformat(text.zfill(len(text) + (text[1] == ":")))
            return text
        if _DATE.fullmatch(text):
            datetime.fromisoformat(text)
            return text.replace(" ", "T")
    except ValueError:
        raise mistake(f"{text!r} is no time that there is", _RIGHT) from None
    raise mistake(f"{text!r} is no time at which a job may begin", _RIGHT)


def _delay(text: str) -> int:
    seconds = parse_duration(text.removeprefix(NOW))
    if seconds <= 0:
        raise mistake(f"{text!r} is no delay", "remove it: a job begins as soon as it can")
    return seconds


def delay_of(begin: str) -> int | None:
    """The seconds of `now+2h`; None for a time of day and for a date."""
    return _delay(begin) if begin.startswith(NOW) else None


Begin = Annotated[
    str,
    BeforeValidator(_begin),
    WithJsonSchema({"type": "string", "examples": ["22:00", "2026-12-01T22:00", "now+2h"]}),
]
"""A time of this machine's clock, or of so long after the submission."""
