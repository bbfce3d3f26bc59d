"""Makes a validated recipe of a recipe file, the files that it extends, and overrides."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from mmlaunch.errors import Problem, RecipeError
from mmlaunch.load.model_of_run import with_model
from mmlaunch.load.node import Node, Place, Source
from mmlaunch.load.overrides import apply
from mmlaunch.load.text import read_file
from mmlaunch.recipe.check import recipe_of, section_of
from mmlaunch.recipe.recipe import Recipe
from mmlaunch.recipe.section import Section

S = TypeVar("S", bound=Section)
T = TypeVar("T")

PACKAGED = "mmlaunch.recipes"
Also = Callable[[Any], Sequence[Problem]]
"""Finds problems of a recipe's plain data that the recipe itself does not know, such as those of a cluster."""


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
        return "".join(f"# -s {' '.join(override.splitlines())}\n" for override in self.overrides) + written

    def placed(self, problems: Sequence[Problem]) -> RecipeError:
        """The same problems, each with its place in the text."""
        return RecipeError([_placed(problem, self.node) for problem in problems])


def is_pipeline(path: str | Path) -> bool:
    """Whether a file, or one that it extends, has stages. A file that cannot be read is left to whoever loads it."""
    try:
        file = find(str(path))
        node = read_file(file, problems=[])
        if node.child("objective") is None and node.child("extends") is not None and node.child("stages") is None:
            node = extended(node, file, [])
    except (RecipeError, OSError):
        return False
    return node.child("stages") is not None


def load_recipe(path: str | Path, overrides: Sequence[str] = (), also: Also = lambda data: ()) -> Loaded:
    """Read, merge and validate; raises `RecipeError` with every problem and its place."""
    file = find(str(path))
    problems: list[Problem] = []
    node = extended(read_file(file, str(path) if file == Path(path) else None, problems), file, problems)
    if (stages := node.child("stages")) is not None and node.child("objective") is None:
        right = "validate, render and submit take it; name the recipe of one of its stages"
        raise RecipeError([stages.place.problem("this is a pipeline, and one recipe is wanted", right, ("stages",))])
    node = with_model(apply(node, overrides))
    return Loaded(valid_recipe(node, also, problems), file, node, tuple(overrides))


def valid_recipe(node: Node, also: Also, before: Sequence[Problem] = ()) -> Recipe:
    """The recipe of a whole mapping; raises `RecipeError` with every problem and its place."""

    def check(data: Any) -> Recipe:
        more = list(also(data))
        try:
            recipe = recipe_of(data)
        except RecipeError as error:
            known = {problem.path for problem in error.problems}
            raise RecipeError([*error.problems, *(one for one in more if one.path not in known)]) from None
        if more:
            raise RecipeError(more)
        return recipe

    return validated(node, check, before)


def load_section(kind: type[S], path: Path) -> S:
    """A file that holds one section, such as a cluster profile."""
    return validated(read_file(path), lambda data: section_of(kind, data))


def find(name: str, beside: Path | None = None, place: Place | None = None) -> Path:
    """A recipe's file: as named, beside the recipe that extends it, or one that comes with mmlaunch."""
    try:
        file = _find(name, beside)
        file.resolve()
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # the name is too long, a circle of links, an unknown user, a NUL
        reason = getattr(error, "strerror", None) or str(error)
        place = place or Place(Source(name))
        path = ("extends",) if beside else ()
        raise RecipeError(
            [place.problem(f"names no file ({reason})", "name the YAML file of a recipe", path)]
        ) from None
    return file


def _find(name: str, beside: Path | None) -> Path:
    written = Path(name).expanduser()
    path = beside / written if beside is not None else written
    if os.path.exists(path) or written.is_absolute():  # noqa: PTH110  Path.exists raises where a folder is closed
        return path
    shipped = resources.files(PACKAGED).joinpath(name.removeprefix("recipes/"))
    if isinstance(shipped, Path) and shipped.is_file():
        return shipped
    return path


def extended(
    node: Node,
    file: Path,
    problems: list[Problem],
    below: tuple[Path, ...] = (),
    known: dict[Path, Node] | None = None,
) -> Node:
    """The mapping of a file laid over those that it extends. What is wrong with single keys is added to `problems`.

    `known`: files that were read already, since several may extend the same one.
    """
    assert isinstance(node.value, dict)
    known = {} if known is None else known
    extends = node.value.pop("extends", None)
    if extends is None:
        return node
    names = extends.value if isinstance(extends.value, list) else [extends]
    base: Node | None = None
    lost: list[Problem] = []
    for name in names:
        if not isinstance(name.value, str):
            raise RecipeError(
                [name.place.problem("extends names files", "write extends: base/llama3_clip.yaml", ("extends",))]
            )
        parent = find(name.value, file.parent, name.place)
        chain = (*below, file.resolve())
        if parent.resolve() in chain:
            circle = " -> ".join(p.name for p in (*chain, parent.resolve()))
            raise RecipeError([name.place.problem(f"extends itself: {circle}", "break the circle", ("extends",))])
        if not os.path.isfile(parent):  # noqa: PTH113  Path.is_file raises where a folder is closed
            right = f"looked for {parent} and among the recipes that come with mmlaunch"
            there = os.path.exists(parent)  # noqa: PTH110  Path.exists raises where a folder is closed
            what = "is no regular file" if there else "no such file"
            lost.append(name.place.problem(f"{what}: {name.value}", right, ("extends",)))
            continue
        if (whole := known.get(parent.resolve())) is None:
            whole = extended(read_file(parent, problems=problems), parent, problems, chain, known)
            known[parent.resolve()] = whole
        base = whole if base is None else base.merged(whole)
    if lost:  # keys that seem to be missing may be in these files
        raise RecipeError([*problems, *lost])
    node.key_places.pop("extends", None)
    return node if base is None else base.merged(node)


def validated(node: Node, check: Callable[[Any], T], before: Sequence[Problem] = ()) -> T:
    """`check(plain data)`. Its problems, and those `before` it, get their places and are raised in the text's order."""
    problems = list(before)
    known = {problem.path for problem in before}
    try:
        value = check(node.plain())
        if not before:
            return value
    except RecipeError as error:
        problems += [_placed(problem, node) for problem in error.problems if problem.path not in known]
    raise RecipeError(sorted(problems, key=partial(_order, node.place.source.name)))


def _order(first: str, problem: Problem) -> tuple[bool, str, int, int]:
    """The recipe's own file first, then by file, line and column."""
    name, *numbers = problem.place.rsplit(":", 2)
    if len(numbers) < 2 or not all(number.isdigit() for number in numbers):
        return problem.place != first, problem.place, 0, 0
    return name != first, name, int(numbers[0]), int(numbers[1])


def _placed(problem: Problem, node: Node) -> Problem:
    place = node.locate(problem.path, problem.on_key)
    excerpt = place.source.excerpt(place.line, place.column, place.width)
    return replace(problem, place=str(place), excerpt=excerpt)
