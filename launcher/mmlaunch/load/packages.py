"""Packages of the user's own that a recipe names by a module: where they stand, and which files of them a run keeps.

What stands beside the recipe, on PYTHONPATH or in an editable installation may be edited while a run waits: the run
gets a copy of the whole package. What is installed stays where it is, and its version is written down.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from mmlaunch.errors import UserError
from mmlaunch.run.plugins import source_in

LARGEST = 16 << 20
"""Bytes of a package that a run keeps: code and small tables, and no data."""
MOST_FILES = 2000
IN_SNAPSHOT = ("mmlaunch", "mmjobs")
"""Packages that every run has a copy of."""
_INSTALLED = ("site-packages", "dist-packages")
_JOINS = b'"""A folder without this file would not go before a package of the same name."""\n\n' + (
    b'__path__ = __import__("pkgutil").extend_path(__path__, __name__)\n'
)
"""The `__init__.py` of the copy of a package that has none; other parts of it that are installed stay part of it."""


class NoModule(Exception):
    """A module that is nowhere; its text is the name of the first part that is missing."""


class TooLarge(UserError):
    """A package that is too large for a copy of it."""


@dataclass(frozen=True)
class Package:
    """A package, or a single module, of this top-level name."""

    name: str
    path: Path | None
    """Its folder, or the file of a single module; None: it is built into Python."""
    source: Path | None
    """The file of the module that was looked for; None: it is compiled."""

    @property
    def copied(self) -> bool:
        """Whether a run keeps a copy of it."""
        if self.path is None or self.name in IN_SNAPSHOT:
            return False
        path, paths = self.path.resolve(), sysconfig.get_paths()
        of_python = any(path.is_relative_to(Path(paths[kind]).resolve()) for kind in ("stdlib", "platstdlib"))
        return not of_python and not any(part in _INSTALLED for part in path.parts)

    @property
    def version(self) -> str | None:
        """The version of the distribution that it was installed with."""
        import importlib.metadata  # only a submission needs it

        if owners := importlib.metadata.packages_distributions().get(self.name):
            return importlib.metadata.version(owners[0])
        first = {self.name, f"{self.name}.py"}  # Python 3.10 does not look at the files of a distribution
        for one in importlib.metadata.distributions():
            if any(file.parts[0] in first for file in one.files or ()):
                return one.version
        return None

    def files(self) -> Iterator[tuple[str, Path]]:
        """The files that are copied: their names, which begin with that of the package; raises `TooLarge`."""
        assert self.path is not None
        if self.path.is_file():
            yield self.path.name, self.path
            return
        size, largest = 0, (0, self.path)
        for count, path in enumerate(_below(self.path), 1):
            size += path.stat().st_size
            largest = max(largest, (path.stat().st_size, path))
            if size > LARGEST or count > MOST_FILES:
                much = f"has more than {MOST_FILES:,} files"
                if size > LARGEST:
                    much = f"is larger than {LARGEST >> 20} MiB, with {largest[0] / (1 << 20):.1f} MiB in {largest[1]}"
                raise TooLarge(
                    f"the package {self.name} in {self.path} {much}, and a run would keep a copy of it; move what is no"
                    f" code out of it, or install it: pip install, without -e"
                )
            yield f"{self.name}/{path.relative_to(self.path).as_posix()}", path

    def contents(self) -> dict[str, bytes]:
        """The same with what they hold; raises `UserError` for one that cannot be read."""
        try:
            contents = {name: path.read_bytes() for name, path in self.files()}
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read, and a run keeps a copy: {error.strerror}") from None
        if self.path is not None and self.path.is_dir():
            contents.setdefault(f"{self.name}/__init__.py", _JOINS)
        return contents


def find(module: str, beside: Path, working: Path) -> Package:
    """Where a module is: beside the recipe, where Python finds it, or in the working folder; raises `NoModule`."""
    package = standing_in(beside, module)
    if package is None:
        try:
            package = _importable(module)
        except NoModule:
            package = standing_in(working, module)
            if package is None:
                raise
    return package


def standing_in(folder: Path, module: str) -> Package | None:
    """The package of a module that stands in a folder; None where it does not."""
    folder = folder.absolute()
    source, top = source_in(folder, module), module.partition(".")[0]
    if source is None:
        return None
    return Package(top, source if source.parent == folder else folder / top, source)


def _importable(module: str) -> Package:
    top, *below = module.split(".")
    try:
        first = importlib.util.find_spec(top)
    except ValueError:  # a module of this process that came from nowhere
        first = None
    if first is None:
        raise NoModule(top)
    spec: ModuleSpec | None = first
    name = top
    for part in below:
        folders = list(spec.submodule_search_locations or ()) if spec is not None else []
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, folders) if folders else None
        if spec is None:
            raise NoModule(module)
    source = Path((spec.origin if spec is not None else None) or "")
    is_text = source.suffix == ".py" and source.is_file()
    return Package(top, _path_of(first, module), source if is_text else None)


def _path_of(spec: ModuleSpec, module: str) -> Path | None:
    """The folder of a top-level package, or the file of a module; of several folders, the one that holds the module."""
    folders = [Path(folder).absolute() for folder in spec.submodule_search_locations or ()]
    if folders:
        return next((folder for folder in folders if source_in(folder.parent, module) is not None), folders[0])
    origin = Path(spec.origin or "")
    return origin if origin.is_file() else None


def _below(folder: Path) -> Iterator[Path]:
    """The files below a folder that belong to a package: no caches, nothing hidden, and no folder behind a link."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        for name in sorted(files):
            path = Path(here, name)
            if not name.startswith(".") and path.suffix != ".pyc" and path.is_file():
                yield path
