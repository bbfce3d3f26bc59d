"""Plugins, the user's own code that a recipe names: whether it exists and can be called, read from its sources.

Nothing of the user's is executed or imported here. A file, and a package that is not installed, is copied into the run
when it is submitted, so that later edits change neither a queued run nor a resumed one.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mmlaunch.errors import Problem
from mmlaunch.load import packages
from mmlaunch.load.packages import NoModule, Package, TooLarge
from mmlaunch.recipe.compared import Compared
from mmlaunch.recipe.plugin import Plugin
from mmlaunch.recipe.recipe import Recipe
from mmlaunch.recipe.reward_functions import CONTEXT
from mmlaunch.recipe.rewards import RewardSource
from mmlaunch.recipe.suggest import closest
from mmlaunch.run.paths import RunPaths

Function = ast.FunctionDef | ast.AsyncFunctionDef
Place = tuple[str | int, ...]
OBJECTIVE = ("objective", "method")
"""Where a recipe names an objective of the user's own."""


@dataclass(frozen=True)
class Folders:
    """Where the user's files are looked for."""

    recipe: Path
    """The folder that the recipe stands in."""
    working: Path
    """The folder that the command is given in."""
    run: RunPaths | None = None
    """The run, which may have its copy already."""

    def find(self, file: str) -> Path | None:
        """The file that a recipe names; the run's own copy goes before all others."""
        kept = [self.run.plugin_file(file)] if self.run else []
        written = Path(file).expanduser()
        places = [*kept, self.recipe / written, self.working / written]
        return next((path for path in places if path.is_file()), None)

    def package(self, module: str) -> Package:
        """The package of a module; the run's own copy goes before all others. Raises `NoModule`."""
        if not self.has_copy(module.partition(".")[0]):
            return packages.find(module, self.recipe, self.working)
        assert self.run is not None
        if (kept := packages.standing_in(self.run.plugin_files, module)) is None:
            raise NoModule(module)
        return kept

    def has_copy(self, package: str) -> bool:
        """Whether the run has a copy of a package, or of a single module, already."""
        folder = self.run.plugin_files if self.run else None
        return folder is not None and any((folder / name).exists() for name in (package, f"{package}.py"))

    @property
    def looked(self) -> str:
        return " and in ".join(str(path) for path in dict.fromkeys((self.recipe.absolute(), self.working.absolute())))


class _Wrong(Exception):
    """What is wrong with a function: the place below its source, what it is, and what would be right."""

    def __init__(self, what: str, right: str = "", place: Sequence[str] = ("function",)) -> None:
        super().__init__(what)
        self.right, self.place = right, tuple(place)


def plugins(recipe: Recipe) -> Iterator[tuple[Place, Plugin, RewardSource | None]]:
    """All plugins that a recipe names: where it does, and of a reward function what it is called with."""
    task = recipe.objective
    of_metrics = list(task.metric) if isinstance(task, Compared) else None
    for index, source in enumerate(task.reward_sources):
        if source.plugin is not None:
            place = ("rewards", index) if of_metrics is None else ("metric", of_metrics[index])
            yield ("objective", *place), source.plugin, source
    for group in ("train", "input", "eval"):
        for index, data in enumerate(getattr(recipe.data, group)):
            if data.plugin is not None:
                yield ("data", group, index, "format"), data.plugin, None
    for below, plugin in task.plugins.items():
        yield ("objective", *below), plugin, None
    for index, tracker in enumerate(recipe.log.trackers):
        if tracker.plugin is not None:
            yield ("log", "trackers", index, "kind"), tracker.plugin, None


def problems(recipe: Recipe, folders: Folders) -> list[Problem]:
    """What would stop the plugins of a recipe from being loaded, or its reward functions from being called."""
    wrong: list[Problem] = []
    for place, plugin, source in plugins(recipe):
        try:
            _check(plugin, source, folders, is_objective=place == OBJECTIVE)
        except _Wrong as error:
            below = error.place if source is not None else ()
            wrong.append(Problem((*place, *below), str(error), error.right))
    return wrong


def files(recipe: Recipe, folders: Folders) -> dict[str, bytes]:
    """What a run has to keep and does not have yet: name below the folder of its plugins -> content."""
    assert folders.run is not None
    contents: dict[str, bytes] = {}
    for _, plugin, _ in plugins(recipe):
        kept = folders.run.plugin_file(plugin.file) if plugin.file else None
        original = folders.find(plugin.file) if plugin.file else None
        if kept is not None and original is not None and original != kept:
            contents[kept.name] = _text(original).encode()
    for package in _packages(recipe, folders):
        if package.copied and not folders.has_copy(package.name):
            contents |= package.contents()
    return contents


def edited(recipe: Recipe, folders: Folders) -> list[str]:
    """The files that are no longer what the run has a copy of; it goes on with its copy."""
    if folders.run is None:
        return []
    names = []
    for file in dict.fromkeys(plugin.file for _, plugin, _ in plugins(recipe) if plugin.file):
        kept, written = folders.run.plugin_file(file), Path(file).expanduser()
        now = next((one for one in (folders.recipe / written, folders.working / written) if one.is_file()), None)
        if now is not None and kept.is_file() and now.read_bytes() != kept.read_bytes():
            names.append(file)
    return names


def origins(recipe: Recipe, folders: Folders) -> dict[str, dict[str, str]]:
    """Of each package that a recipe names: where its copy comes from, or the version that is installed."""
    origins_of: dict[str, dict[str, str]] = {}
    for package in _packages(recipe, folders):
        if package.copied:
            origins_of[package.name] = {"copied from": str(package.path)}
        elif version := package.version:
            origins_of[package.name] = {"version": version}
    return origins_of


def _packages(recipe: Recipe, folders: Folders) -> list[Package]:
    """Those that are there: `problems` tells of the others."""
    packages_of: dict[str, Package] = {}
    for module in sorted({plugin.module for _, plugin, _ in plugins(recipe) if plugin.module}):
        with suppress(NoModule):
            package = folders.package(module)
            packages_of[package.name] = package
    return list(packages_of.values())


def _check(plugin: Plugin, source: RewardSource | None, folders: Folders, is_objective: bool) -> None:
    path = _file(plugin.file, folders) if plugin.file else _source_of(plugin.module or "", folders)
    if path is None:  # a compiled module: it has no source
        return
    shown = plugin.file or plugin.module or ""
    names = _names(_tree(path, shown))
    if plugin.name not in names:
        if "*" in names or "__getattr__" in names:
            return
        kinds = Function if source is not None else (Function, ast.ClassDef)
        near = closest(plugin.name, [name for name, node in names.items() if isinstance(node, kinds)])
        known = ", ".join(name for name, node in names.items() if isinstance(node, kinds))
        right = f"did you mean {shown}:{near}?" if near else f"it defines {known or 'no function'}"
        raise _Wrong(f"{shown} defines no {plugin.name}", right)
    node = names[plugin.name]
    if not isinstance(node, (Function, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)):
        return
    value = getattr(node, "value", None)
    plain = isinstance(value, ast.Constant) and value.value is not None  # None may stand for what cannot be imported
    if plain or isinstance(value, (ast.List, ast.Dict, ast.Tuple)):
        raise _Wrong(f"{shown}: {plugin.name} is no function and no class", "name one of these")
    if source is not None and isinstance(node, Function) and not node.decorator_list:
        _check_call(node, source)
    if is_objective and isinstance(node, ast.ClassDef):
        _check_objective(node)


def _file(file: str, folders: Folders) -> Path:
    path = folders.find(file)
    if path is None:
        folder = folders.recipe / Path(file).expanduser().parent
        near = closest(Path(file).name, [found.name for found in folder.glob("*.py")] if folder.is_dir() else [])
        right = f"did you mean {Path(file).with_name(near)}?" if near else f"it is looked for in {folders.looked}"
        raise _Wrong(f"no such file: {file}", right)
    return path


def _modules(package: str, folders: Folders) -> list[str]:
    """The modules of a package that stands beside the recipe or in the working folder."""
    files = [file for folder in (folders.recipe, folders.working) for file in (folder / package).glob("*.py")]
    return [f"{package}.{file.stem}" for file in files]


def _source_of(module: str, folders: Folders) -> Path | None:
    """The source file of a module; None: it has none. Its package is looked at too: a run may have to copy it."""
    top = module.partition(".")[0]
    try:
        package = folders.package(module)
        for _ in package.files() if package.copied and not folders.has_copy(top) else ():
            pass
    except NoModule as error:
        right = "install it here, stand in the folder that holds it, or write file.py:function"
        if folders.has_copy(top):
            right = f"the run has its copy of {top}, without this module; name a module of another package, or a file"
        elif near := closest(module, _modules(top, folders)):
            raise _Wrong(f"no module {module}", f"did you mean {near}?") from None
        raise _Wrong(f"no module {error}", right) from None
    except TooLarge as error:
        what, _, right = str(error).rpartition("; ")
        raise _Wrong(what, right) from None
    return package.source


def _tree(path: Path, shown: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(_text(path))
            compile(tree, shown, "exec", dont_inherit=True)  # finds more than the parser does; nothing is executed
    except (SyntaxError, ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        raise _Wrong(f"{shown}{line} does not compile: {what}") from None
    return tree


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _Wrong(f"{path} cannot be read: {error}", "write it in UTF-8") from None


def _names(tree: ast.Module) -> dict[str, ast.AST]:
    """What a module binds when it is imported, wherever in it: name -> the statement; `*` if it imports one."""
    names: dict[str, ast.AST] = {}
    for node in _statements(tree.body):
        if isinstance(node, (Function, ast.ClassDef)):
            names[node.name] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.partition(".")[0]: node for alias in node.names}
        else:
            stored = [one for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]
            names |= {one.id: node for one in stored}
    return names


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements that run at import, those under `if`, `try`, `with` and loops included."""
    for node in body:
        yield node
        for field in ("body", "orelse", "finalbody") if not isinstance(node, (Function, ast.ClassDef)) else ():
            yield from _statements(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body)


def _check_call(node: Function, source: RewardSource) -> None:
    """Whether the function can be called with the answer, the truth, what it names and the recipe's options."""
    name, options = node.name, source.keywords
    if isinstance(node, ast.AsyncFunctionDef):
        raise _Wrong(f"{name} is async", f"write def {name}(answer, truth)")
    arguments = node.args
    places = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
    if len(places) < 2 and arguments.vararg is None:
        raise _Wrong(f"{name} does not take an answer and its truth", f"write def {name}(answer, truth)")
    needed = places[2 : len(places) - len(arguments.defaults)]
    needed += [one.arg for one, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value is None]
    known = [*places[2:], *(one.arg for one in arguments.kwonlyargs)]
    for option in options:
        if option not in known and (arguments.kwarg is None or option in places[:2]):
            near = closest(option, known)
            right = f"did you mean {near}?" if near else f"it has {', '.join(known) or 'none'}"
            raise _Wrong(f"{name} has no option {option}", right, ("options", option))
    if missing := [one for one in needed if one not in options and one not in CONTEXT]:
        raise _Wrong(f"{name} needs a value for {missing[0]}", f"add options: {{{missing[0]}: ...}}")


def _check_objective(node: ast.ClassDef) -> None:
    """Whether the class has what every objective has; what it inherits is not looked at."""
    if node.bases or node.keywords or node.decorator_list:
        return
    named = [one for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]
    defined = {one.name for one in node.body if isinstance(one, Function)} | {one.id for one in named}
    for method, arguments in (("units", "self, batch"), ("__call__", "self, network, batch")):
        if method not in defined:
            raise _Wrong(f"{node.name} has no {method}", f"write def {method}({arguments})")
