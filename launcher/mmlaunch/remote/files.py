"""The files of a recipe that travel: it, those that it extends, its plugins, and the templates beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmlaunch.errors import UserError
from mmlaunch.load.node import Node
from mmlaunch.load.packages import standing_in
from mmlaunch.load.plugins import Folders, plugins
from mmlaunch.load.recipe import Loaded
from mmlaunch.load.text import read_file

_FOLDERS_OF_TEMPLATES = (".", "templates")


def files_of(recipe: Path, loaded: Sequence[Loaded], working: Path) -> dict[str, Path]:
    """Where each file goes, below one folder -> where it is here; the recipe itself is the first.

    `loaded`: the recipe, or all stages of a pipeline. Between the files, paths lead where they lead here; a plugin that
    stands in the working folder goes beside the recipe, where plugins are looked for first.
    """
    templates = [path for name in _FOLDERS_OF_TEMPLATES for path in sorted((recipe.parent / name).glob("*.j2"))]
    places = {_place(path): path for path in (*_recipes(recipe), *templates)}
    for one in loaded:
        for _, plugin, _ in plugins(one.recipe):
            source = Folders(recipe.parent, working).find(plugin.file) if plugin.file else None
            if plugin.file and source is not None:
                places[_beside(recipe, plugin.file)] = source
            for name, path in _package(plugin.module, recipe.parent, working) if plugin.module else ():
                places[_beside(recipe, name)] = path
    root = os.path.commonpath([place.parent for place in places])
    return {str(place.relative_to(root)): source for place, source in places.items()}


def _package(module: str, beside: Path, working: Path) -> Iterator[tuple[str, Path]]:
    """The files of a package beside the recipe or in the working folder; any other is that of the other machine."""
    package = standing_in(beside, module) or standing_in(working, module)
    return package.files() if package is not None else iter(())


def _recipes(main: Path) -> list[Path]:
    """A recipe and all files that it, or a stage of it, extends; those that come with mmlaunch are there already."""
    known: list[Path] = []
    waiting = [main]
    while waiting:
        file = waiting.pop()
        if file in known:
            continue
        known.append(file)
        node = read_file(file, problems=[])
        stages = node.child("stages")
        named = [(file, name) for name in _names(node.child("extends"))]
        for stage in stages.value.values() if stages is not None and isinstance(stages.value, dict) else ():
            named += [
                (main, name) for name in _names(stage if isinstance(stage.value, str) else stage.child("extends"))
            ]
        waiting += [path for by, name in named if (path := _beside(by, name)).is_file()]
    return known


def _names(node: Node | None) -> Iterator[str]:
    if node is not None:
        items = node.value if isinstance(node.value, list) else [node]
        yield from (item.value for item in items if isinstance(item.value, str))


def _beside(file: Path, name: str) -> Path:
    """The file that another one names."""
    written = Path(name).expanduser()
    if written.is_absolute():
        right = f"write its path from the folder of {file.name}"
        raise UserError(f"{file}: {name} is an absolute path, which leads nowhere on another machine; {right}")
    return _place(file.parent / written)


def _place(path: Path) -> Path:
    """An absolute path without `..`; links stay what they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100  resolve would follow links
