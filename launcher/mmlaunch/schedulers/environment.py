"""The environment that a job begins with: the user's, without what an enclosing job left in it."""

from __future__ import annotations

from collections.abc import Mapping

from mmlaunch.recipe.environment import LAUNCHERS, RANKS

KEPT = ("SLURM_CONF", "SLURM_TIME_FORMAT")
"""Variables that do not describe a job: how Slurm's programs find their cluster and write times."""

FOREIGN = (*LAUNCHERS, "MMLAUNCH_ATTEMPT", "MMLAUNCH_DEADLINE", "MMLAUNCH_SUBMISSION")


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what an enclosing job left in it."""
    return {
        name: value
        for name, value in environment.items()
        if name in KEPT or not (name.startswith(FOREIGN) or name in RANKS)
    }
