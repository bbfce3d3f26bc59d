"""Reads YAML text as nodes. Only this module and `syntax` know YAML, and which parts of it a recipe may use."""

from __future__ import annotations

import json
import os
import re
import stat
from importlib import resources
from pathlib import Path

import yaml

from mmlaunch.errors import Problem, RecipeError
from mmlaunch.load.node import Node, Place, Source
from mmlaunch.load.syntax import explained
from mmlaunch.recipe.scalars import Plain
from mmlaunch.recipe.suggest import closest

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 100

_CORE = {
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "merge", "value")
}
_NULL = ("", "~", "null", "Null", "NULL")
_MERGE = "<<"
_PLAIN = "write plain UTF-8 text"
_ODD_INDENT = re.compile("^ *([\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000\ufeff])", re.MULTILINE)
_SPACES = "indent with plain spaces"
_BEYOND = re.compile(r"\\U(?!000|0010)[0-9A-Fa-f]{8}")
_HALVES = re.compile("[\ud800-\udfff]")


def read_file(path: Path, shown: str | None = None, problems: list[Problem] | None = None) -> Node:
    """The mapping in a YAML file.

    With `problems`, mistakes of single keys and values are added to it, and the rest is still returned.
    """
    source = Source(shown or str(path))
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise RecipeError([Place(source).problem("is a folder", "name the YAML file in it")])
        if not stat.S_ISREG(kind):  # a pipe would block, a device may never end
            raise RecipeError([Place(source).problem("is no regular file", "name the YAML file of a recipe")])
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError([Place(source).problem("no such file", _neighbours(path))]) from None
    except OSError as error:
        raise RecipeError(
            [Place(source).problem(f"cannot be read ({error.strerror})", "check its permissions")]
        ) from None
    if len(data) > MAX_BYTES:
        size = path.stat().st_size
        what = f"has {size / 1e6:.1f} MB: this is no recipe (the limit is {MAX_BYTES // 1024} KiB)"
        raise RecipeError([Place(source).problem(what, "name the YAML file of a recipe")])
    return parse(_decode(data, source), source.name, problems)


def parse(text: str, name: str, problems: list[Problem] | None = None) -> Node:
    """The mapping in a YAML text."""
    source = Source(name, tuple(line.removesuffix("\r") for line in text.split("\n")), text)
    if odd := _ODD_INDENT.search(text):
        code = f"U+{ord(odd.group(1)):04X}"
        place = _at(text, odd.start(1), source)
        raise RecipeError([place.problem(f"the line is indented with {code}, which only looks like a space", _SPACES)])
    node = parse_value(text, source, problems)
    if node is None or node.value is None:
        raise RecipeError([Place(source).problem("is empty", "start with name:, model:, data:, objective:")])
    if not isinstance(node.value, dict):
        raise RecipeError([node.place.problem("a recipe is a mapping", "write lines such as name: my-run")])
    return node


def parse_value(text: str, source: Source, problems: list[Problem] | None = None) -> Node | None:
    """Any YAML value; None for an empty text."""
    try:
        events = yaml.compose_all(text, Loader=yaml.SafeLoader)
        root = next(events, None)
        extra = next(events, None)
    except yaml.MarkedYAMLError as error:
        raise RecipeError([explained(error, source)]) from None
    except yaml.reader.ReaderError as error:
        place = _at(text, error.position, source)
        raise RecipeError([place.problem(f"holds a {json.dumps(text[error.position])} character", _PLAIN)]) from None
    except (ValueError, OverflowError):  # an escape for a character that does not exist
        escape = _BEYOND.search(text)
        place = _at(text, escape.start() if escape else 0, source)
        raise RecipeError([place.problem("an escape for a character that there is not", _PLAIN)]) from None
    except RecursionError:
        raise RecipeError([Place(source).problem("is nested too deeply", f"stay below {MAX_DEPTH} levels")]) from None
    if extra is not None:
        begin = range(extra.start_mark.line + 1, 0, -1)
        place = Place(
            source, next((n for n in begin if source.lines[n - 1 : n] and source.lines[n - 1][:3] == "---"), 1), 1, 3
        )
        raise RecipeError(
            [place.problem("a second document begins here", "keep one recipe in a file (remove the ---)")]
        )
    if root is None:
        return None
    builder = _Builder(source)
    node = builder.build(root)
    if problems is not None:
        problems += builder.problems
    elif builder.problems:
        raise RecipeError(builder.problems)
    return node


class _Builder:
    """Turns YAML's nodes into ours, and collects the mistakes of all of them."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.count = 0

    def build(self, root: yaml.Node) -> Node:
        return self._node(root, (), ())

    def _node(self, node: yaml.Node, path: tuple[str | int, ...], above: tuple[int, ...]) -> Node:
        place = _place(node, self.source)
        self.count += 1
        if self.count > MAX_NODES:
            right = "anchors multiply what they name: write it out, or name less"
            raise RecipeError([place.problem(f"grows to more than {MAX_NODES:,} values", right, path)])
        if id(node) in above:
            raise RecipeError([place.problem("an anchor that contains itself", "write the value out", path)])
        if len(above) > MAX_DEPTH:
            raise RecipeError([place.problem("is nested too deeply", f"stay below {MAX_DEPTH} levels", path)])
        self._check_tag(node, place, path)
        above = (*above, id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place, path, above)
        if isinstance(node, yaml.SequenceNode):
            return Node([self._node(item, (*path, i), above) for i, item in enumerate(node.value)], place)
        assert isinstance(node, yaml.ScalarNode)
        self._check_text(node, place, path)
        return Node(_scalar(node), place)

    def _check_text(self, node: yaml.ScalarNode, place: Place, path: tuple[str | int, ...]) -> None:
        """Refuse half of a UTF-16 pair, which can be written as an escape and cannot be saved as UTF-8."""
        if _HALVES.search(node.value):
            self.problems.append(place.problem("holds half a character", _PLAIN, path))

    def _check_tag(self, node: yaml.Node, place: Place, path: tuple[str | int, ...]) -> None:
        if node.tag not in _CORE:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            self.problems.append(
                place.problem(f"the tag {tag} is refused: a recipe holds plain values only", "remove the tag", path)
            )

    def _mapping(
        self, node: yaml.MappingNode, place: Place, path: tuple[str | int, ...], above: tuple[int, ...]
    ) -> Node:
        value: dict[str, Node] = {}
        places: dict[str, Place] = {}
        merged: list[Node] = []
        for key_node, item in node.value:
            key_place = _place(key_node, self.source)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(key_place.problem("a key must be a word", "write key: value", path))
                continue
            key = key_node.value
            self._check_tag(key_node, key_place, (*path, key))
            self._check_text(key_node, key_place, path)
            if key in places:
                first = places[key].line
                self.problems.append(
                    key_place.problem(
                        "this key stands here twice", f"line {first} has it already; keep one", (*path, key)
                    )
                )
                continue
            places[key] = key_place
            if key == _MERGE and key_node.style is None:
                merged += self._merge(item, (*path, key), above)
            else:
                value[key] = self._node(item, (*path, key), above)
        places = {key: place for key, place in places.items() if key in value}
        for other in merged:  # keys that are written here win over merged ones
            if isinstance(other.value, dict):
                value = {**other.value, **value}
                places = {**other.key_places, **places}
        return Node(value, place, places)

    def _merge(self, item: yaml.Node, path: tuple[str | int, ...], above: tuple[int, ...]) -> list[Node]:
        items = item.value if isinstance(item, yaml.SequenceNode) else [item]
        nodes = [self._node(part, path, above) for part in items]
        for part in nodes:
            if not isinstance(part.value, dict):
                self.problems.append(part.place.problem("<< merges mappings", "name an anchor of a mapping", path))
        return nodes


def _scalar(node: yaml.ScalarNode) -> str | None:
    """A plain scalar keeps its text, whatever type YAML 1.1 gives it. A quoted one is always text."""
    if node.style is not None:
        return str(node.value)
    return None if node.value in _NULL else Plain(node.value)


def _place(node: yaml.Node, source: Source) -> Place:
    start, end = node.start_mark, node.end_mark
    width = end.column - start.column if end.line == start.line else 1
    return Place(source, *source.place_of(start), max(width, 1))


def _at(text: str, position: int, source: Source) -> Place:
    before = text[:position]
    return Place(source, before.count("\n") + 1, position - before.rfind("\n"))


def _decode(data: bytes, source: Source) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        shown = Source(source.name, tuple(data.decode("utf-8", errors="replace").splitlines()))
        raise RecipeError([Place(shown, line, column).problem("is not UTF-8 text", "save the file as UTF-8")]) from None


def _neighbours(path: Path) -> str:
    try:
        names = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml"))
    except OSError:
        return _other_folder(path)
    if near := closest(path.name, names):
        return f"did you mean {path.with_name(near)}?"
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{path.parent}/ has {shown}" if names else f"{path.parent}/ has no YAML files"


def _shipped() -> list[str]:
    """The names of the recipes that come with mmlaunch."""
    return [file.name for file in resources.files("mmlaunch.recipes").iterdir() if file.name.endswith(".yaml")]


def _other_folder(path: Path) -> str:
    folder = path.parent
    try:
        names = [p.name for p in folder.parent.iterdir() if p.is_dir() and os.access(p, os.R_OK | os.X_OK)]
    except OSError:
        names = []
    if folder.name == "recipes" and (shipped := closest(path.name, _shipped(), cutoff=0.8)):
        return f"did you mean {folder / shipped}, which comes with mmlaunch?"
    near = closest(folder.name, names)
    return f"there is no folder {folder}" + (f"; {_neighbours(folder.with_name(near) / path.name)}" if near else "")
