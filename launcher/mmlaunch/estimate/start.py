"""How long a start takes at least, and whether a time limit leaves room for it."""

from __future__ import annotations

from mmlaunch.errors import UserError
from mmlaunch.estimate.memory import GIGA, estimate, kept
from mmlaunch.load.cluster import Cluster
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.scalars import format_duration

QUIET = 60
"""Seconds of imports, of joining the ranks and of a first step, on a quiet file system."""
SPEED = 1.0
"""Gigabytes of weights that a rank reads in a second, at most: a shared file system, a page cache that is cold."""


def seconds(recipe: Recipe) -> int:
    """A start and a first step, at least; the weights count where their shapes are known on this machine."""
    try:
        weights = estimate(recipe).counts.total * kept(recipe) / GIGA
    except UserError:
        weights = 0.0
    return QUIET + round(weights / SPEED)


def too_short(recipe: Recipe, cluster: Cluster) -> str:
    """Why the time limit is likely to bring no step on a cluster; empty if it is long enough."""
    time, lead = recipe.resources.time, cluster.signal.lead
    if time - lead >= (needed := seconds(recipe)):
        return ""
    left = f"{format_duration(time - lead)} for a start and a step" if time > lead else "no time for a step"
    told = f"ranks are told to leave {format_duration(lead)} (the profile's signal.lead) before the end"
    return f"{format_duration(time)} leave {left}, which takes {format_duration(needed)} or more: {told}"
