"""The points of a sweep: `-s optim.lr=1e-6,5e-7 -s seed=1..3` are six recipes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmlaunch.errors import RecipeError, UserError
from mmlaunch.load.overrides import split as split_override

MOST = 10_000
"""The most points of a sweep."""
_RANGE = re.compile(r"(-?\d{1,9})\.\.(-?\d{1,9})(?:\.\.(\d{1,9}))?")
_ONE_JOB = ("resources", "env", "name")
"""The sections that all points share: they are tasks of one job array, from one script."""


@dataclass(frozen=True)
class Sweep:
    """The overrides that all points share, and those of each point."""

    shared: tuple[str, ...]
    points: tuple[tuple[str, ...], ...]


def sweep_of(overrides: Sequence[str]) -> Sweep:
    """Every combination of the values that overrides list."""
    shared, axes = list[str](), list[list[str]]()
    for override in overrides:
        path, text, place = split_override(override)
        values = list(_values(text))
        if len(values) == 1:
            shared.append(override)
            continue
        if path.strip().partition(".")[0] in _ONE_JOB:
            what = "the points of a sweep are tasks of one job array, and share their resources"
            raise RecipeError([place.problem(what, "submit one sweep for each")])
        if len(set(values)) < len(values):
            raise RecipeError([place.problem("lists a value twice", "leave out one of them")])
        axes.append([f"{path.strip()}={value}" for value in values])
    if not axes:
        raise UserError("--sweep, and no value is a list; write -s optim.lr=1e-6,5e-7 or -s seed=1..3")
    count = 1
    for axis in axes:
        count *= len(axis)
    if count > MOST:
        raise UserError(f"a sweep of {count:,} points; at most {MOST:,}")
    return Sweep(tuple(shared), tuple(itertools.product(*axes)))


def _values(text: str) -> Iterator[str]:
    """`1e-6,5e-7` is two values, `1..3` three; a comma inside brackets or quotes divides nothing."""
    if match := _RANGE.fullmatch(text.strip()):
        first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
        if not step or abs(last - first) // step >= MOST:
            raise UserError(f"{text}: a range of more than {MOST:,} values, or of none")
        sign = 1 if last >= first else -1
        yield from map(str, range(first, last + sign, sign * step))
        return
    depth, quote, begin = 0, "", 0
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and not depth:
            yield text[begin:index].strip()
            begin = index + 1
    yield text[begin:].strip()
