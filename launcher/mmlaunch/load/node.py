"""A tree of values that remember where they were written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mmlaunch.errors import Problem
from mmlaunch.recipe.check import section_at
from mmlaunch.recipe.recipe import Recipe

_MORE_BREAKS = re.compile("[\x85\u2028\u2029]|\r(?!\n)")


class Mark(Protocol):
    """A place in a text, as YAML gives it."""

    line: int
    column: int
    index: int


@dataclass(frozen=True)
class Source:
    """A text that holds values: a file, or an override on the command line."""

    name: str
    lines: tuple[str, ...] = ()
    text: str = ""

    def place_of(self, mark: Mark) -> tuple[int, int]:
        """The line and the column of a mark, as editors count them: YAML has more line breaks than they have."""
        if not _MORE_BREAKS.search(self.text):
            return mark.line + 1, mark.column + 1
        before = self.text[: mark.index]
        return before.count("\n") + 1, mark.index - before.rfind("\n")

    def excerpt(self, line: int, column: int, width: int) -> str:
        """The line with a caret under the place; tabs and control characters are made visible."""
        if not 1 <= line <= len(self.lines):
            return ""
        text = self.lines[line - 1]
        start, end = column - 1, min(column - 1 + max(width, 1), len(text))
        first = max(0, start - 60)  # a window, so that a huge line cannot flood the terminal
        shown = _visible(text[first : first + 120])
        lead = len(_visible(text[first:start]))
        carets = "^" * max(1, min(len(_visible(text[start:end])), 120 - lead))
        return f"{line:>4} | {shown}\n{'':>4} | {' ' * lead}{carets}"


@dataclass(frozen=True)
class Place:
    """A place in a source; line 0 stands for the source as a whole."""

    source: Source
    line: int = 0
    column: int = 0
    width: int = 1

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}" if self.line else self.source.name

    def problem(self, what: str, right: str = "", path: tuple[str | int, ...] = ()) -> Problem:
        """A problem at this place."""
        return Problem(
            path, what, right, place=str(self), excerpt=self.source.excerpt(self.line, self.column, self.width)
        )


@dataclass
class Node:
    """A scalar (text or None), a list of nodes or a mapping of nodes."""

    value: str | list[Node] | dict[str, Node] | None
    place: Place
    key_places: dict[str, Place] = field(default_factory=dict)  # the place of each key of a mapping

    def plain(self) -> Any:
        """The same tree without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def locate(self, path: Sequence[str | int], on_key: bool) -> Place:
        """Where the value at `path` stands; where it is missing, the innermost section that would hold it."""
        node, place, path = self, self.place, self._as_written(path)
        for index, part in enumerate(path):
            below = node.child(part)
            if below is None:
                return place
            place, last = below.place, index == len(path) - 1
            if isinstance(node.value, dict) and (on_key if last else isinstance(below.value, dict)):
                place = node.key_places[str(part)]
            node = below
        if isinstance(node.value, (dict, list)) and path and not on_key:
            return self._key_place(path) or place
        return place

    def _as_written(self, path: Sequence[str | int]) -> list[str | int]:
        """The path as the user wrote it: a list of one may be written as its only element, without an index."""
        node: Node | None = self
        parts: list[str | int] = []
        for part in path:
            if part == 0 and node is not None and not isinstance(node.value, list):
                continue
            parts.append(part)
            node = node.child(part) if node is not None else None
        return parts

    def child(self, part: str | int) -> Node | None:
        """The node at a key or an index, if there is one."""
        if isinstance(self.value, dict):
            return self.value.get(str(part))
        if isinstance(self.value, list) and isinstance(part, int) and part < len(self.value):
            return self.value[part]
        return None

    def _key_place(self, path: Sequence[str | int]) -> Place | None:
        """The place of a section's key: a caret there is clearer than one under the section's first line."""
        node = self
        for part in path[:-1]:
            node = node.child(part) or node
        return node.key_places.get(str(path[-1])) if isinstance(node.value, dict) else None

    def merged(self, over: Node, path: tuple[str, ...] = ()) -> Node:
        """This mapping with another laid over it: mappings merge, everything else replaces.

        A word that is short for a section merges as that section. An empty section changes nothing.
        """
        if isinstance(self.value, dict) and over.value is None and len(path) == 1:
            return self
        base = self.widened(path) if isinstance(over.value, dict) else self
        if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
            return over
        new = {key for key, node in over.value.items() if key not in base.value or base.value[key].value != node.value}
        gone = section_at(Recipe, path).replaced_by(new) if path else ()
        value = {key: node for key, node in base.value.items() if key not in gone}
        for key, node in over.value.items():
            value[key] = value[key].merged(node, (*path, key)) if key in value else node
        return Node(value, over.place, {**base.key_places, **over.key_places})

    def widened(self, path: Sequence[str | int]) -> Node:
        """The section for which a word at this path is short; any other node as it is."""
        section = section_at(Recipe, path) if isinstance(self.value, str) and path else Recipe
        if not section.SHORT:
            return self
        keys = section.of_word(self.value)
        return Node(dict.fromkeys(keys, self), self.place, dict.fromkeys(keys, self.place))


def _visible(text: str) -> str:
    return "".join("→" if c == "\t" else c if c.isprintable() else "\ufffd" for c in text)
