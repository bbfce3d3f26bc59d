"""Runs a command that needs what training needs as a program of that side, in its own process, named by a string."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmlaunch.errors import MachineError, MmlaunchError
from mmlaunch.run import plugins


def run(
    module: str,
    arguments: Sequence[str],
    needs: Sequence[str] = ("torch",),
    beside: Path | None = None,
    of_run: Path | None = None,
) -> dict[str, Any]:
    """The JSON object that `python -m module arguments` prints last; its progress goes to standard error.

    The program may say which `exit_code` an error of its own has. Its plugins are those `beside` a recipe, or the
    copies `of_run`.
    """
    _check(needs)
    places = {plugins.BESIDE: beside, plugins.RUN: of_run}
    environment = {**os.environ, **{name: str(one.absolute()) for name, one in places.items() if one is not None}}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    try:
        result: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        raise MmlaunchError(f"{module} ended with exit code {done.returncode}") from None
    if "error" in result:
        error = MmlaunchError(str(result["error"]))
        error.exit_code = result.get("exit_code", error.exit_code)
        raise error
    return result


def _check(needs: Sequence[str]) -> None:
    """Refuse where this Python lacks what a program needs."""
    if missing := [name for name in needs if importlib.util.find_spec(name) is None]:
        what = f"this Python has no {' and no '.join(missing)}"
        raise MachineError(f"{what}; type it where runs train, or: pip install 'mmlaunch[train]'")


def interact(module: str, arguments: Sequence[str]) -> int:
    """Run a program that talks with the user; returns its exit code."""
    _check(("torch",))
    with subprocess.Popen([sys.executable, "-m", module, *arguments]) as program:
        while True:
            try:
                return program.wait()
            except KeyboardInterrupt:  # it is the program's to answer
                continue
