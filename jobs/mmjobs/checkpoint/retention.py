"""Retention: which checkpoints stay, and how the others are deleted."""

from __future__ import annotations

import math
from collections.abc import Collection

from mmjobs.checkpoint.train_state import TrainState
from mmlaunch.recipe.checkpoint import Checkpoint
from mmlaunch.run import manifest, users
from mmlaunch.run.paths import CheckpointPaths, RunPaths


def prune(paths: RunPaths, settings: Checkpoint, newest: int, rejected: Collection[int]) -> None:
    """Delete what the recipe does not keep. Only sealed checkpoints count; `newest` is one, and is never deleted.

    Those that were `rejected` at the start of the attempt stay for their owner to look at, until as many newer ones are
    saved as the recipe keeps.
    """
    older = [step for step in manifest.steps(paths.checkpoints) if step <= newest]
    valid = [step for step in older if step not in rejected and (step == newest or _is_whole(paths, step))]
    kept = set(valid[-settings.keep :])
    kept |= {step for step in rejected if sum(saved > step for saved in valid) < settings.keep}
    if settings.keep_every:
        kept |= {step for step in valid if step % settings.keep_every == 0}
    kept |= _best(paths, settings, valid) | users.needed_steps(paths)
    for step in older:
        if step not in kept:
            manifest.delete(paths.checkpoints, step)


def _is_whole(paths: RunPaths, step: int) -> bool:
    try:
        manifest.validate(paths.checkpoint(step), contents=False)
    except manifest.InvalidCheckpoint:
        return False
    return True


def _best(paths: RunPaths, settings: Checkpoint, valid: list[int]) -> set[int]:
    """The step whose own evaluation was the best, when the recipe keeps it."""
    if settings.best is None:
        return set()
    values: dict[int, float] = {}
    for step in valid:
        state = TrainState.read(CheckpointPaths(paths.checkpoint(step)).state)
        value = state.metrics.get(settings.best, math.nan)
        if state.evaluated == step and math.isfinite(value):
            values[step] = value
    sign = 1 if settings.best_is == "highest" else -1
    return {max(values, key=lambda step: (sign * values[step], step))} if values else set()


def rollouts_in_use(*tiers: RunPaths) -> set[int]:
    """The steps of the rollouts that checkpoints go on with, on disk and in memory."""
    steps = set()
    for folder in (paths.checkpoint(step) for paths in tiers for step in manifest.steps(paths.checkpoints)):
        try:
            source = TrainState.read(CheckpointPaths(folder).state).source
        except (OSError, ValueError, TypeError):
            continue
        steps |= {int(source["rollout"]["step"])} if source.get("rollout") else set()
    return steps
