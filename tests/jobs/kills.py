"""Real ranks that die at a chosen place."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any


def kill_at(place: str, count: int, rank: int | None = None) -> Callable[[], None]:
    """What a `Job` prepares: this rank, or each of them, dies by SIGKILL at the `count`-th call of a function,
    `module:Class.name`."""
    return partial(_arm, place, count, rank)


def _arm(place: str, count: int, rank: int | None) -> None:
    module, _, path = place.partition(":")
    *parents, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    plain, calls = getattr(owner, name), [0]

    def deadly(*values: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == count and rank in (None, int(os.environ["RANK"])):
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*values, **named)

    setattr(owner, name, deadly)
