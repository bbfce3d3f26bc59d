"""Loads plugins in a job: functions and classes of the user's own, from the run's copy of their file or package."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from mmlaunch.errors import PluginFailed
from mmlaunch.run.paths import RunPaths

_BUGS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, NotImplementedError,
    RecursionError, TypeError, ValueError,
)  # fmt: skip
"""Errors of a program, which come again in every attempt. Those of a device or a peer keep their type: the restart
policy knows them."""
RUN, BESIDE = "MMLAUNCH_RUN", "MMLAUNCH_RECIPE_FOLDER"
"""Variables of the environment: the run that a process belongs to; without one, the folder of the recipe."""


def load(file: str | None, module: str | None, name: str) -> Any:
    """What `file.py:name` or `module:name` of a recipe means; raises `PluginFailed` where it cannot be loaded."""
    written = f"{file or module}:{name}"
    _prefer_own(module)
    try:
        loaded = module_of(_file(file)) if file is not None else importlib.import_module(str(module))
    except Exception as error:  # the user's own code may raise anything when it is imported
        raise PluginFailed(f"{written} cannot be loaded: {type(error).__name__}: {error}") from error
    if not hasattr(loaded, name):
        raise PluginFailed(f"{written}: {file or module} defines no {name}")
    return getattr(loaded, name)


@contextmanager
def named(written: str, own: Any) -> Iterator[None]:
    """In this context errors of the user's code name its plugin, and the last line there that was run."""
    try:
        yield
    except _BUGS as error:
        raise PluginFailed(f"{written} failed{_line(error, own)}: {type(error).__name__}: {error}") from error
    except RuntimeError as error:
        if type(error) is RuntimeError:  # such as sizes of tensors that do not match
            error.args = (f"{error} ({written}{_line(error, own)})",)
        raise


def _line(error: BaseException, own: Any) -> str:
    file = getattr(sys.modules.get(getattr(own, "__module__", "")), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" in line {lines[-1]}" if lines else ""


def source_in(folder: Path, module: str) -> Path | None:
    """The file of a module in a folder: of `lab.losses` lab/losses.py, or lab/losses/__init__.py."""
    path = folder.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_name(f"{path.name}.py")) if file.is_file()), None)


def import_first(folder: Path) -> None:
    """Let Python look into a folder before all others."""
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _prefer_own(module: str | None) -> None:
    """Packages come from the run's copies; where a command reads a recipe without a run, from beside the recipe."""
    if run := os.environ.get(RUN):
        import_first(RunPaths(Path(run)).plugin_files)
    elif module and (beside := os.environ.get(BESIDE)) and source_in(Path(beside), module) is not None:
        import_first(Path(beside))


def _file(written: str) -> Path:
    """The run's copy of a file, or the file itself where a command reads a recipe without a run."""
    if run := os.environ.get(RUN):
        return RunPaths(Path(run)).plugin_file(written)
    return Path(os.environ.get(BESIDE, ""), Path(written).expanduser())


def module_of(file: Path) -> ModuleType:
    """The module in a file, imported once in a process."""
    name = f"plugin_{file.stem.replace('-', '_')}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
