"""A recipe file, what it extends and its overrides, to a validated recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from mmlaunch.errors import Problem, RecipeError
from mmlaunch.load.node import Node, Place
from mmlaunch.load.overrides import apply
from mmlaunch.load.text import read_file
from mmlaunch.recipe.check import recipe_of, section_of
from mmlaunch.recipe.recipe import Recipe
from mmlaunch.recipe.section import Section

S = TypeVar("S", bound=Section)
T = TypeVar("T")

PACKAGED = "mmlaunch.recipes"


@dataclass(frozen=True)
class Loaded:
    """A recipe, and the text that it came from."""

    recipe: Recipe
    path: Path
    node: Node
    overrides: tuple[str, ...]

    @property
    def text(self) -> str:
        """The file as it was written, with its overrides noted on top."""
        written = self.path.read_text(encoding="utf-8-sig")
        return "".join(f"# -s {override}\n" for override in self.overrides) + written

    def placed(self, problems: Sequence[Problem]) -> RecipeError:
        """The same problems, each with its place in the text."""
        return RecipeError([_placed(problem, self.node) for problem in problems])


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read, merge and validate; raises `RecipeError` with every problem and its place."""
    file = find(str(path))
    node = apply(_extended(read_file(file, str(path) if file == Path(path) else None), file, ()), overrides)
    return Loaded(validated(node, recipe_of), file, node, tuple(overrides))


def load_section(kind: type[S], path: Path) -> S:
    """A file that holds one section, such as a cluster profile."""
    return validated(read_file(path), lambda data: section_of(kind, data))


def find(name: str, beside: Path | None = None) -> Path:
    """A recipe's file: as named, beside the recipe that extends it, or one that comes with mmlaunch."""
    written = Path(name).expanduser()
    path = beside / written if beside is not None else written
    if os.path.exists(path) or written.is_absolute():  # noqa: PTH110  Path.exists raises where a folder is closed
        return path
    shipped = resources.files(PACKAGED).joinpath(name.removeprefix("recipes/"))
    if isinstance(shipped, Path) and shipped.is_file():
        return shipped
    return path


def _extended(node: Node, file: Path, below: tuple[Path, ...]) -> Node:
    """The mapping of a file laid over those that it extends."""
    assert isinstance(node.value, dict)
    extends = node.value.pop("extends", None)
    if extends is None:
        return node
    names = extends.value if isinstance(extends.value, list) else [extends]
    base: Node | None = None
    for name in names:
        if not isinstance(name.value, str):
            raise RecipeError(
                [name.place.problem("extends names files", "write extends: base/llama3_clip.yaml", ("extends",))]
            )
        parent = find(name.value, file.parent)
        chain = (*below, file.resolve())
        if parent.resolve() in chain:
            circle = " -> ".join(p.name for p in (*chain, parent.resolve()))
            raise RecipeError([name.place.problem(f"extends itself: {circle}", "break the circle", ("extends",))])
        if not os.path.exists(parent):  # noqa: PTH110  as above
            right = f"looked for {parent} and among the recipes that come with mmlaunch"
            raise RecipeError([name.place.problem(f"no such file: {name.value}", right, ("extends",))])
        extended = _extended(read_file(parent), parent, chain)
        base = extended if base is None else base.merged(extended)
    node.key_places.pop("extends", None)
    return node if base is None else base.merged(node)


def validated(node: Node, check: Callable[[Any], T]) -> T:
    """`check(plain data)`, its problems placed in the text and in the order of the text."""
    try:
        return check(node.plain())
    except RecipeError as error:
        problems = [(_place(problem, node), _placed(problem, node)) for problem in error.problems]
    problems.sort(
        key=lambda pair: (pair[0].source is not node.place.source, pair[0].source.name, pair[0].line, pair[0].column)
    )
    raise RecipeError([problem for _, problem in problems])


def _place(problem: Problem, node: Node) -> Place:
    return node.locate(problem.path, problem.on_key)


def _placed(problem: Problem, node: Node) -> Problem:
    place = _place(problem, node)
    excerpt = place.source.excerpt(place.line, place.column, place.width)
    return replace(problem, place=str(place), excerpt=excerpt)
