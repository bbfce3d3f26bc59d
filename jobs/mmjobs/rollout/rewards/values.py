"""Short answers by value: numbers with units, lists of them, times of day; whether two of them are worth the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mmjobs.rollout.rewards.parse import is_unit, leading_number, plain

_PREFIXES = {"": ("", 1.0), "m": ("milli", 1e-3), "c": ("centi", 1e-2), "d": ("deci", 1e-1), "k": ("kilo", 1e3)}
_BASES = {"length": ("m", "metre", "meter"), "mass": ("g", "gram"), "volume": ("l", "litre", "liter")}
_TIMES = {
    "ms": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "day": 86400.0,
}
_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
UNITS = {
    name: (dimension, factor)
    for dimension, (short, *names) in _BASES.items()
    for letter, (prefix, factor) in _PREFIXES.items()
    for name in (letter + short, *(prefix + one for one in names))
} | {name: ("time", factor) for name, factor in _TIMES.items()}
"""Units that are converted: name -> what it measures, and its size. All other units are taken as they are."""

_ABOUT = re.compile(r"(?:about|approximately|around|roughly|exactly|\\approx|≈|~|=)\s*", re.IGNORECASE)
_NAME = re.compile(r"\\?([A-Za-z]\w{0,3})\s*=\s*(?!=)")
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?\s*(?:([ap])\.?m\.?)?", re.IGNORECASE)
_DATE = re.compile(r"\d+([-/.])\d+\1\d+|\d+0'?s")
"""A date or a decade, such as 1990s."""
_INEQUALITY = re.compile(r"[<>≤≥≠]|\\(?:l|g|n)eq?\b")
_POWER = re.compile(r"(?:(square|sq\.?|cubic)\s+)?([a-z]+)(?:\^?\{?([23])\}?)?")
_POWERS = {"square": 2, "sq": 2, "sq.": 2, "cubic": 3}
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_SEPARATOR = re.compile(r"\s*(?:,\s+(?:and|or)\s|,(?!\d{3}(?!\d))|,\s|;|\s(?:and|or)\s)\s*", re.IGNORECASE)

Close = Callable[[float, float], bool]
"""Whether a number is near enough to that of the truth."""


@dataclass(frozen=True)
class Quantity:
    """A number, and what its unit measures and how large it is, where that is known."""

    value: float
    dimension: str = ""
    unit: float = 1.0


@dataclass(frozen=True)
class Values:
    """What an answer consists of: one value, or several in brackets or without them."""

    name: str
    """`n` of "n = 3"."""
    brackets: str
    parts: tuple[str, ...]

    @property
    def ordered(self) -> bool:
        return self.brackets[:1] in ("(", "[")

    @property
    def quantities(self) -> list[Quantity] | None:
        """None where a part is no number, or none is there."""
        read = [quantity(part) for part in self.parts]
        return [one for one in read if one] if read and all(read) else None


def quantity(text: str) -> Quantity | None:
    """The number that a whole text is, with a unit at most; None if it is more, or none."""
    text = _ABOUT.sub("", plain(text), count=1) if _ABOUT.match(plain(text)) else plain(text)
    value, rest = leading_number(text)
    if value is None:
        return None
    words = rest.lower().split()
    if words and words[0] in _SCALES:
        value, rest, words = value * _SCALES[words[0]], rest.lstrip()[len(words[0]) :], words[1:]
    if not words:
        return Quantity(value)
    if unit := _unit(" ".join(words)):
        return Quantity(value, *unit)
    return Quantity(value) if is_unit(rest) else None


def _unit(text: str) -> tuple[str, float] | None:
    """What a known unit measures, and its size: `cm^2`, `square metres`, `h`."""
    match = _POWER.fullmatch(text)
    name = match.group(2) if match else ""
    unit = UNITS.get(name) or UNITS.get(name.removesuffix("s"))
    if match is None or unit is None:
        return None
    power = int(match.group(3) or _POWERS.get(match.group(1) or "", 1))
    return (unit[0], unit[1]) if power == 1 else (f"{unit[0]}^{power}", unit[1] ** power)


def equal(own: Quantity, truth: Quantity, close: Close) -> bool:
    """Whether two quantities are the same; a unit that only one of them has is left out."""
    if own.dimension and truth.dimension:
        return own.dimension == truth.dimension and close(own.value * own.unit, truth.value * truth.unit)
    return close(own.value, truth.value)


def same(own: str, truth: str, close: Close) -> bool | None:
    """Whether two answers are worth the same; None: this cannot be seen from their values."""
    own, truth = _plain(own), _plain(truth)
    clocks = _clock(own), _clock(truth)
    if any(clocks):
        return clocks[0] == clocks[1]
    if _DATE.fullmatch(own) or _DATE.fullmatch(truth):
        return own == truth
    first, second = values(own), values(truth)
    numbers, wanted = first.quantities, second.quantities
    if numbers is None or wanted is None:
        one_sided = (_INEQUALITY.search(own) and wanted) or (_INEQUALITY.search(truth) and numbers)
        return False if one_sided and not (first.brackets or second.brackets) else None
    if (first.name and second.name and first.name != second.name) or len(numbers) != len(wanted):
        return False
    if len(numbers) == 1:
        return equal(numbers[0], wanted[0], close)
    if first.ordered or second.ordered:
        if first.brackets and second.brackets and first.brackets != second.brackets:
            return False
    else:
        numbers, wanted = _sorted(numbers), _sorted(wanted)
    return all(equal(one, other, close) for one, other in zip(numbers, wanted, strict=True))


def values(text: str) -> Values:
    """The parts of a text: `n = 2, 3` has two, `(0, 1.5)` two in brackets, `±4` the two values 4 and -4."""
    named = _NAME.match(text)
    name, text = (named.group(1), text[named.end() :].strip()) if named else ("", text)
    brackets = ""
    if len(text) > 1 and text[0] in _BRACKETS and text[-1] in ")]}" and _encloses(text):
        brackets, text = text[0] + text[-1], text[1:-1].strip()
    parts = [part for part in _split(text) if part]
    both = [[part[1:].strip(), f"-{part[1:].strip()}"] if part.startswith("±") else [part] for part in parts]
    return Values(name, brackets, tuple(one for of_part in both for one in of_part))


def quantities(text: str) -> list[Quantity] | None:
    """The numbers that a text consists of; None if it has anything else."""
    return values(_plain(text)).quantities


def _plain(text: str) -> str:
    text = plain(text.replace("\\pm", "±").replace("\\{", "{").replace("\\}", "}"))
    return text.replace("+/-", "±").rstrip(". ")


def _clock(text: str) -> tuple[int, int, int] | None:
    """A time of day as hours, minutes and seconds."""
    match = _CLOCK.fullmatch(text.strip())
    if match is None:
        return None
    hour, minute, second = (int(match.group(part) or 0) for part in (1, 2, 3))
    half = (match.group(4) or "").lower()
    return (hour % 12 + (12 if half == "p" else 0) if half else hour, minute, second)


def _encloses(text: str) -> bool:
    """Whether the first bracket is closed by the last one; a half-open interval may close with another kind."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0:
            return place == len(text) - 1
    return False


def _split(text: str) -> list[str]:
    """The parts between commas, semicolons, "and" and "or" that stand in no brackets."""
    parts, begin, depth, place = [], 0, 0, 0
    separators = {match.start(): match.end() for match in _SEPARATOR.finditer(text)}
    while place < len(text):
        depth += (text[place] in "([{") - (text[place] in ")]}")
        if depth == 0 and place in separators:
            parts.append(text[begin:place].strip())
            begin = place = separators[place]
            continue
        place += 1
    return [*parts, text[begin:].strip()]


def _sorted(quantities: list[Quantity]) -> list[Quantity]:
    return sorted(quantities, key=lambda one: one.value * one.unit)
