"""Records what a run was submitted with: the code, the commit, the versions, without any secret."""

from __future__ import annotations

import getpass
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from mmlaunch.errors import MachineError
from mmlaunch.recipe.environment import hide_secrets
from mmlaunch.run.files import READ_ONLY, publish
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers import choose
from mmlaunch.schedulers.rank import CARRIED
from mmlaunch.submit import secrets

PACKAGES = ("mmlaunch", "mmjobs")  # by name only: the jobs package is never imported here
DATA = ("templates", "recipes")
FOR_CONTAINERS = ("submitit", "cloudpickle", "typing_extensions")
"""What starts a rank, and its requirements: an image for training may lack them."""
VERSIONS = ("mmlaunch", "submitit", "torch", "deepspeed", "transformers", "peft", "pydantic", "numpy")
MAX_DIFF = 1 << 20


def snapshot(target: Path) -> None:
    """Copy the packages that a job runs into a folder; first on PYTHONPATH, it wins over what is installed."""
    try:
        _copy(target)
    except shutil.Error as errors:  # shutil lists all of them: the first one is enough
        _, path, reason = errors.args[0][0]
        raise OSError(None, reason, path) from errors


def _copy(target: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(_folder(package), target / package, ignore=_ignored)
    for name in DATA:  # these stand outside the package in a source tree
        folder = resources.files(f"mmlaunch.{name}")
        if isinstance(folder, Path) and not (target / "mmlaunch" / name).exists():
            shutil.copytree(folder, target / "mmlaunch" / name, ignore=_ignored)
    for name in FOR_CONTAINERS:
        _carry(name, target / CARRIED)


def _carry(name: str, target: Path) -> None:
    """Copy a package, or a module that is one file."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise MachineError(f"{name} is not installed beside mmlaunch; install mmlaunch again")
    if spec.submodule_search_locations:
        shutil.copytree(Path(spec.origin).parent, target / name, ignore=_ignored)
    else:
        target.mkdir(exist_ok=True)
        shutil.copyfile(spec.origin, target / Path(spec.origin).name)


def plugins(run: RunPaths, contents: Mapping[str, bytes]) -> None:
    """Keep the user's own code: what a run was submitted with is what it goes on with.

    A package appears whole or not at all. Points of a sweep share theirs, and the first one has brought it.
    """
    folder = run.plugin_files
    if contents:
        _open_folder(folder)
    new: dict[str, Path] = {}
    for name, content in contents.items():
        package, _, inside = name.partition("/")
        if not inside:
            publish(folder / name, content, READ_ONLY)
        elif not (folder / package).exists():
            new[package] = folder / f".{package}.{os.getpid()}"
            _open_folder((new[package] / inside).parent)
            publish(new[package] / inside, content, READ_ONLY)
    for package, whole in new.items():
        whole.rename(folder / package)


def _open_folder(folder: Path) -> None:
    """Make a folder that others may read, whatever the umask."""
    if not folder.exists():
        _open_folder(folder.parent)
        folder.mkdir()
        folder.chmod(0o755)


def environment(folder: Path, recipe: Path, values: Mapping[str, str], packages: Mapping[str, Any]) -> str:
    """`environment.json`: where, by whom, from which commit and with which versions; `packages`: the user's own."""
    record: dict[str, Any] = {
        "command": list(sys.argv),
        "folder": str(folder),
        "recipe": str(recipe),
        "user": getpass.getuser(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": f"{platform.python_version()} ({sys.executable})",
        "versions": {name: version for name in VERSIONS if (version := _version(name))},
        **choose.versions(),
        **({"plugins": dict(packages)} if packages else {}),
        "git": _git(recipe.parent) or _git(folder),
    }
    return json.dumps(_redacted(record, values), indent=2, ensure_ascii=False) + "\n"


def _redacted(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return secrets.redact(value, values)
    if isinstance(value, list):
        return [_redacted(item, values) for item in value]
    if isinstance(value, dict):
        return {key: _redacted(item, values) for key, item in value.items()}
    return value


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MachineError(f"the package {package} is not installed beside mmlaunch; install mmlaunch again")
    return Path(next(iter(spec.submodule_search_locations)))


def _ignored(folder: str, names: list[str]) -> set[str]:
    keep = (".py", ".j2", ".jinja", ".yaml", ".typed")
    return {
        name for name in names if not (name.endswith(keep) or (Path(folder, name).is_dir() and name != "__pycache__"))
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path) -> dict[str, Any] | None:
    """The commit of the working tree around `folder`, and what was changed since."""
    if shutil.which("git") is None:
        return None
    commit = _first_line(["git", "-C", str(folder), "rev-parse", "HEAD"])
    if commit is None:
        return None
    status = _output(["git", "-C", str(folder), "status", "--porcelain"]) or ""
    diff = _output(["git", "-C", str(folder), "diff", "HEAD"]) or ""
    if len(diff) > MAX_DIFF:
        diff = diff[:MAX_DIFF] + f"\n... cut after {MAX_DIFF} of {len(diff)} characters\n"
    return {"commit": commit, "dirty": bool(status), "status": list(_lines(status)), "diff": hide_secrets(diff)}


def _lines(text: str, most: int = 200) -> Iterator[str]:
    lines = text.splitlines()
    yield from lines[:most]
    if len(lines) > most:
        yield f"... and {len(lines) - most} more"


def _first_line(command: list[str]) -> str | None:
    output = _output(command)
    return output.splitlines()[0].strip() if output and output.strip() else None


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
