"""One row of a data set as it was written, and the messages about its mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmjobs.data.example import BadRow, Origin


def kind(value: object) -> str:
    """What a value is called in a message."""
    if value is None:
        return "null"
    names: dict[type, str] = {bool: "true or false", int: "a number", float: "a number", str: "text"}
    names |= {list: "a list", tuple: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), f"a {type(value).__name__}")


@dataclass(frozen=True)
class Row:
    """The values of a row by column; nobody changes them."""

    origin: Origin
    values: Mapping[str, Any]

    def bad(self, what: str) -> BadRow:
        return BadRow(self.origin, what)

    def get(self, column: str) -> Any:
        """The value, or None where the row has none; parquet has null where JSON has no key."""
        return self.values.get(column)

    def need(self, column: str) -> Any:
        """A value that has to be there."""
        if column not in self.values:
            raise self.bad(f"no column {column}; it has {', '.join(map(str, self.values)) or 'none'}")
        if self.values[column] is None:
            raise self.bad(f"{column} is null; it needs a value")
        return self.values[column]

    def text(self, column: str) -> str:
        """Text that has to be there, and to hold more than white space."""
        text = self.clean(self.need(column), column)
        if not text.strip():
            raise self.bad(f"{column} is empty; it needs some text")
        return text

    def clean(self, value: object, what: str) -> str:
        """`value` itself, byte for byte, if it is text that can be written down."""
        if not isinstance(value, str):
            raise self.bad(f"{what} is {kind(value)}; it has to be text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(value[error.start]):04x}"
            raise self.bad(f"{what} holds half a character, {half}; it needs whole ones") from None
        return value

    def number(self, value: object, what: str) -> float:
        """A finite number; text that looks like one is not."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.bad(f"{what} is {kind(value)}; it has to be a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.bad(f"{what} is {number}; it has to be a finite number")
        return number

    def label(self) -> str | None:
        """The column `label` as text: numbers as they are written, `true` and `false`."""
        value = self.get("label")
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, (int, float)):
            return str(value)
        return None if value is None else self.clean(value, "label")
