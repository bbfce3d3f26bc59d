"""`-s path=value`: the only way to change a recipe from the command line, through the same validation."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmlaunch.errors import Problem, RecipeError
from mmlaunch.load.node import Node, Place, Source
from mmlaunch.load.text import parse_value

_PART = re.compile(r"([^.\[\]=]+)|\[([0-9]{1,9})\]")
_NUMBER = re.compile(r"[0-9]{1,9}")
_DEEPEST = 100
_ONE_IS_A_LIST = (("data", "train"), ("data", "input"), ("data", "eval"), ("objective", "rewards"))
"""The keys whose list of one element may be written without the list."""


def apply(root: Node, overrides: Sequence[str]) -> Node:
    """The tree with every override laid over it."""
    problems: list[Problem] = []
    for override in overrides:
        try:
            root = _apply_one(root, override)
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    return root


def split(override: str) -> tuple[str, str, Place]:
    """The path and the text of its value."""
    place = Place(Source(f"-s {override}"))
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise RecipeError([place.problem("is not path=value", "write -s optim.lr=1e-6")])
    return path, text, place


def _apply_one(root: Node, override: str) -> Node:
    path, text, place = split(override)
    if path.strip() == "extends":
        right = f"write a recipe of two lines, name: and extends: {text}, or name that recipe itself"
        raise RecipeError([place.problem("extends stands in a file: values laid over it would be lost", right)])
    parsed = parse_value(text, Source(place.source.name, (text,)))
    value = _moved(parsed, place) if parsed is not None else Node(None, place)
    return _set(root, _parts(path.strip(), place), value, place, ())


def _parts(path: str, place: Place) -> list[str | int]:
    parts: list[str | int] = []
    for piece in path.split("."):
        matches = _PART.findall(piece)
        if not matches or "".join(word or f"[{index}]" for word, index in matches) != piece:
            raise RecipeError([place.problem(f"{path!r} is not a path", "write data.train[0].limit=100")])
        parts += [int(index or word) if index or _NUMBER.fullmatch(word) else word for word, index in matches]
    if len(parts) > _DEEPEST:
        raise RecipeError([place.problem(f"a path of {len(parts)} parts", "write data.train[0].limit=100")])
    return parts


def _set(node: Node | None, path: Sequence[str | int], value: Node, place: Place, above: tuple[str | int, ...]) -> Node:
    """A copy of `node` in which the value at `path` is replaced; missing sections are made."""
    if not path:
        return value
    part, rest = path[0], path[1:]
    if part == 0 and above in _ONE_IS_A_LIST and node is not None and isinstance(node.value, dict):
        return _set(node, rest, value, place, above)
    if isinstance(part, int):
        items = list(node.value) if node is not None and isinstance(node.value, list) else None
        if above in _ONE_IS_A_LIST and node is not None and isinstance(node.value, (dict, str)):
            items = [node]
        if items is None or part >= len(items):
            has = f"it has {len(items)} items" if items is not None else "it is no list"
            raise RecipeError([place.problem(f"there is no item [{part}]", has, above)])
        items[part] = _set(items[part], rest, value, place, (*above, part))
        return Node(items, node.place if node is not None else place)
    if node is not None and isinstance(node.value, list):
        right = f"write -s {Problem((*above, 0, part), '').dotted}=..."
        raise RecipeError([place.problem(f"is a list of {len(node.value)}", right, above)])
    if node is not None and isinstance(node.value, str) and above:
        node = node.widened(above)
        if isinstance(node.value, str):
            dotted = Problem(above, "").dotted
            raise RecipeError(
                [place.problem(f"{dotted} is the text {node.value!r}, not a section", f"write -s {dotted}=...")]
            )
    if node is not None and isinstance(node.value, dict):
        items_of = dict(node.value)
        items_of[part] = _set(items_of.get(part), rest, value, place, (*above, part))
        return Node(items_of, node.place, {**node.key_places, part: place})
    return Node({part: _set(None, rest, value, place, (*above, part))}, place, {part: place})


def _moved(node: Node, place: Place) -> Node:
    """The same values, all of them placed at one place."""
    if isinstance(node.value, dict):
        return Node(
            {key: _moved(item, place) for key, item in node.value.items()}, place, dict.fromkeys(node.value, place)
        )
    if isinstance(node.value, list):
        return Node([_moved(item, place) for item in node.value], place)
    return Node(node.value, place)
