"""A recipe in the making: its values, where each comes from, and what could not be taken over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmlaunch.load.imports.configuration import Configuration

GUESS = "guess"
UNKNOWN = "import-config does not know it"


class NoCounterpart(Exception):
    """A value that no recipe can hold; the message says why."""


@dataclass(frozen=True)
class To:
    """An argument that is one field of a recipe."""

    path: str
    """`optim.lr`"""
    change: Callable[[Any], Any] = lambda value: value
    """Its value as the recipe writes it; raises `NoCounterpart` where it has none."""


@dataclass(frozen=True)
class Nothing:
    """An argument that no field of a recipe stands for."""

    reason: str


Table = Mapping[str, To | Nothing]


@dataclass(frozen=True)
class LeftOut:
    """An argument that was not taken over."""

    name: str
    value: Any
    reason: str


@dataclass
class Draft:
    """The values of a recipe by their paths."""

    tool: str
    """The name of the tool: TRL."""
    values: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)

    def put(self, path: str, value: Any, comment: str = "") -> None:
        """Set a value; `comment` stands behind it."""
        self.values[path] = value
        self.comments.pop(path, None)
        if comment:
            self.comments[path] = comment

    def guess(self, path: str, value: Any, why: str) -> None:
        """Set a value that nothing in the configuration says for certain."""
        self.put(path, value, f"{GUESS}: {why}")

    def default(self, path: str, value: Any) -> None:
        """Set what the tool uses where a configuration says nothing."""
        if path not in self.values:
            self.put(path, value, f"default of {self.tool}")

    def leave(self, name: str, value: Any, reason: str) -> None:
        """Note an argument that is not taken over."""
        self.left_out.append(LeftOut(name, value, reason))

    def get(self, path: str) -> Any:
        return self.values.get(path)

    @property
    def guesses(self) -> int:
        """How many values are guesses."""
        return sum(comment.startswith(GUESS) for comment in self.comments.values())


def fill(draft: Draft, config: Configuration, table: Table) -> None:
    """Take over every argument of a table."""
    for name, row in table.items():
        if not config.has(name) or name in config.used:
            continue
        value = config.take(name)
        if value is None:
            continue
        if isinstance(row, Nothing):
            draft.leave(name, value, row.reason)
            continue
        try:
            if (changed := row.change(value)) is not None:
                draft.put(row.path, changed)
        except NoCounterpart as why:
            draft.leave(name, value, str(why))
