"""Submits a recipe to another machine: it is checked here, sent there, and submitted there."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmlaunch.errors import MachineError, Problem
from mmlaunch.estimate.knowable import contradictions
from mmlaunch.load import Loaded, plugins
from mmlaunch.load.plugins import Folders
from mmlaunch.remote import records
from mmlaunch.remote.files import files_of
from mmlaunch.remote.host import Host, ask, quoted, raise_refusal, run, ssh
from mmlaunch.submit import secrets

SENT = "sent"
"""The folder of what was sent, below that of the project: one folder for each content, which never changes."""
PATIENCE = 60.0
_VERSION = re.compile(r"^mmlaunch, version (\S+)$", re.MULTILINE)
_RUN = re.compile(r'^(?:\{"run": ")?([A-Za-z0-9._-]+-\d{4}-[0-9a-f]{4})(?:"|   )')
"""How what `mmlaunch submit` prints begins: with the name of the run, also with --json."""


@dataclass(frozen=True)
class Ready:
    """A recipe that can be sent: its files by their places there, and the values that go with it."""

    files: Mapping[str, Path]
    overrides: tuple[str, ...]
    values: Mapping[str, str]
    passed: tuple[str, ...]


@dataclass(frozen=True)
class There:
    """What a host has."""

    version: str
    rsync: bool


def problems(loaded: Loaded) -> list[Problem]:
    """What is wrong with a recipe that can be known here: data, models and modules are those of the other machine."""
    recipe = loaded.recipe
    modules = [place for place, plugin, _ in plugins.plugins(recipe) if plugin.module]
    own = plugins.problems(recipe, Folders(loaded.path.parent, Path.cwd()))
    own = [one for one in own if not any(one.path[: len(place)] == place for place in modules)]
    return [*contradictions(recipe), *own]


def ready(recipe: Path, loaded: Sequence[Loaded], overrides: Sequence[str]) -> Ready:
    """Collect what a recipe needs there; refuses files that hold the value of a secret, and variables without one."""
    passed = tuple(dict.fromkeys(name for one in loaded for name in one.recipe.passed))
    secret = secrets.values(passed) | secrets.suspected()
    files = files_of(recipe, loaded, Path.cwd())
    texts = {str(path): path.read_text(encoding="utf-8", errors="replace") for path in files.values()}
    texts["-s"] = "\n".join(overrides)
    secrets.refuse(texts, secret)
    return Ready(files, tuple(overrides), {name: os.environ[name] for name in passed}, passed)


def look(host: Host) -> There:
    """Look at a host, and make the folder of the project there."""
    script = [
        f"{quoted(host.program)} --version || exit",
        "if command -v rsync >/dev/null; then echo rsync; fi",
        f"mkdir -p {quoted(f'{host.folder}/{SENT}')}",
    ]
    output = ask(host, "\n".join([*script, ""]), PATIENCE)
    version = _VERSION.search(output)
    return There(version.group(1) if version else "of an unknown version", "rsync" in output.splitlines())


def send(host: Host, files: Mapping[str, Path], rsync: bool) -> str:
    """Send the files of a recipe; returns the place of the recipe there, from the folder of the project."""
    contents = {place: path.read_bytes() for place, path in files.items()}
    recipe = next(iter(files))
    digest = hashlib.sha256()
    for place, content in sorted(contents.items()):
        digest.update(f"{place}\0{len(content)}\0".encode() + content)
    folder = f"{SENT}/{Path(recipe).stem}-{digest.hexdigest()[:8]}"
    if not (rsync and shutil.which("rsync") and _with_rsync(host, folder, contents)):
        _with_tar(host, folder, contents)
    return f"{folder}/{recipe}"


def _with_rsync(host: Host, folder: str, contents: Mapping[str, bytes]) -> bool:
    target = f"{host.folder.removeprefix('~/')}/{folder}/"
    with tempfile.TemporaryDirectory(prefix="mmlaunch-") as staged:
        for place, content in contents.items():
            path = Path(staged, place)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        command = ["rsync", "-r", "-s", "--rsh", shlex.join(ssh(host.name)), f"{staged}/", f"{host.name}:{target}"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _with_tar(host: Host, folder: str, contents: Mapping[str, bytes]) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for place, content in contents.items():
            member = tarfile.TarInfo(place)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    target = quoted(f"{host.folder}/{folder}")
    unpack = shlex.quote(f"mkdir -p {target} && tar -C {target} -xof -")
    command = [*ssh(host.name), host.name, f"sh -c {unpack}"]
    done = subprocess.run(command, input=archive.getvalue(), capture_output=True, check=False)
    said = done.stderr.decode(errors="replace")
    raise_refusal(host, done.returncode, said)
    if done.returncode:
        raise MachineError(f"{host.name}: the recipe cannot be sent to {host.folder}: {said.strip()}")


def start(host: Host, recipe: str, what: Ready, options: Sequence[str], show: Callable[[str], None]) -> int:
    """Submit a recipe that was sent, and record the run here; returns the exit code of the command there."""

    def on_line(line: str) -> None:
        if not recorded and (match := _RUN.match(line)):
            recorded.append(match.group(1))
            records.write(match.group(1), host, what.passed)
        show(line)

    recorded: list[str] = []
    overrides = [f"--set={override}" for override in what.overrides]
    return run(host, ["submit", recipe, *overrides, *options], what.values, on_line)
