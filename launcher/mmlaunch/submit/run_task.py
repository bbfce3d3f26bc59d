"""Runs a command that needs torch as a program of the training side, in its own process, named by a string."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from mmlaunch.errors import MachineError, MmlaunchError


def run(module: str, arguments: Sequence[str], needs: str = "torch") -> dict[str, Any]:
    """The JSON object that `python -m module arguments` prints last; its progress goes to standard error.

    `needs`: the heaviest module that it imports.
    """
    if importlib.util.find_spec(needs) is None:
        raise MachineError(f"this Python has no {needs}; type it where runs train, or: pip install 'mmlaunch[train]'")
    done = subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    try:
        result: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        raise MmlaunchError(f"{module} ended with exit code {done.returncode}") from None
    if "error" in result:
        raise MmlaunchError(str(result["error"]))
    return result
