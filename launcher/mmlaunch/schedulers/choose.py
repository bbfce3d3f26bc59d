"""Which scheduler runs a run: the one that its profile names, and which profile is meant when none is named."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmlaunch.schedulers
from mmlaunch.errors import Problem, RecipeError, UserError
from mmlaunch.load import cluster as clusters
from mmlaunch.load.cluster import Cluster
from mmlaunch.recipe.check import section_of
from mmlaunch.recipe.resources import Resources

if TYPE_CHECKING:  # no command waits for the ledger because of a type
    from mmlaunch.run.ledger import Events
    from mmlaunch.schedulers.base import Scheduler

LAST = "local"
"""Can run everywhere: it is chosen when no other scheduler is here, and runs without a name of one are its own."""


def names() -> list[str]:
    """The schedulers that are installed: the folders of this package."""
    files = [file for place in mmlaunch.schedulers.__path__ for file in Path(place).glob("*/scheduler.py")]
    return sorted({file.parent.name for file in files}, key=lambda name: (name == LAST, name))


@cache
def named(name: str) -> Scheduler:
    """The scheduler that a profile's `executor` or a ledger names."""
    if name not in names():
        raise UserError(f"no scheduler {name!r} in this version of mmlaunch (known: {', '.join(names())})")
    scheduler: Scheduler = importlib.import_module(f"{mmlaunch.schedulers.__name__}.{name}.scheduler").SCHEDULER
    return scheduler


def all_schedulers() -> list[Scheduler]:
    """Every scheduler, the one that can run everywhere last."""
    return [named(name) for name in names()]


def of_run(events: Events) -> Scheduler:
    """The scheduler that a run was submitted to."""
    return named(str((events.last("submitted") or {}).get("executor") or LAST))


def profile(name: str | None) -> tuple[str, Cluster]:
    """The cluster profile that was named, or the one that fits this machine."""
    return clusters.choose(name or os.environ.get(clusters.VARIABLE) or _usual_profile(), names())


def profile_here(name: str | None) -> tuple[str, Cluster]:
    """The same for what is done on this machine itself."""
    chosen, cluster = profile(name)
    if cluster.host is not None:
        right = f"mmlaunch submit RECIPE --cluster {chosen} works there, also with --dry-run"
        raise UserError(f"profile {chosen} is of another machine ({cluster.host}); {right}")
    return chosen, cluster


def problem(cluster: Cluster, resources: Resources) -> RecipeError | None:
    """What of a recipe's resources this site cannot give."""
    problems = [*named(cluster.executor).misfits(resources), *clusters.problems(cluster, resources)]
    return RecipeError(problems) if problems else None


def misfits(name: str | None, data: Mapping[str, Any]) -> list[Problem]:
    """What a recipe's plain data ask for that a site cannot give; nothing where they are no resources at all."""
    try:
        resources = section_of(Resources, data.get("resources") or {})
    except RecipeError:
        return []
    misfit = problem(profile(name)[1], resources)
    return list(misfit.problems) if misfit else []


def submitted_from() -> str:
    """The login node that the job around this process came from; empty outside of jobs."""
    return next((host for scheduler in all_schedulers() if (host := scheduler.submitted_from())), "")


def versions() -> Mapping[str, str | None]:
    """The versions of the schedulers' client programs on this machine; None where they are not installed."""
    return {scheduler.name: scheduler.version() for scheduler in all_schedulers() if scheduler.name != LAST}


def _usual_profile() -> str:
    """The user's `default`, or the profile that bears the name of a scheduler that is here."""
    profiles = clusters.profiles()
    if "default" in profiles:
        return "default"
    return next(one.name for one in all_schedulers() if one.name in profiles and one.is_here())
