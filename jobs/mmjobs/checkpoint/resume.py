"""Resuming: the newest valid checkpoint is loaded by all ranks, also where another number of ranks has saved it."""

from __future__ import annotations

import math
import shutil

from mmjobs.checkpoint import keep_frozen, random_state
from mmjobs.checkpoint.memory_tier import MemoryTier
from mmjobs.checkpoint.saveable import Engines, Saveable
from mmjobs.checkpoint.train_state import TrainState
from mmjobs.model import frozen_weights
from mmjobs.model.weights import FILE as WEIGHTS
from mmjobs.rank.context import Context
from mmjobs.rank.disk import DiskFull
from mmlaunch.errors import BadInput
from mmlaunch.run import manifest
from mmlaunch.run.paths import CheckpointPaths


def resume(context: Context, engines: Engines, memory: MemoryTier | None = None) -> TrainState:
    """Load the newest valid checkpoint on all ranks, from memory or from disk, or begin at step 0."""
    ranks = context.ranks
    step, world = _newest(context)
    remembered = memory.newest() if memory is not None else None
    if memory is not None and remembered is not None and remembered > (step or 0):
        with memory.opened(remembered) as checkpoint:
            if checkpoint is not None:
                return _load(context, engines, checkpoint, remembered, ranks.world, "memory")
    if step is None:
        random_state.seed(context.recipe.seed, ranks.rank, 0)
        return TrainState()
    return _load(context, engines, CheckpointPaths(context.paths.checkpoint(step)), step, world, "disk")


def _load(
    context: Context, engines: Engines, checkpoint: CheckpointPaths, step: int, world: int, tier: str
) -> TrainState:
    """Load a checkpoint that this many ranks have saved, on all ranks."""
    ranks, seed = context.ranks, context.recipe.seed
    state = TrainState.read(checkpoint.state)
    for name, engine in engines.items():
        _check_layout(state, name, engine)
    for name, engine in engines.items():
        _check_frozen(context, checkpoint, name, engine)
        if world == ranks.world or not engine.divided:
            engine.load(checkpoint.engine(name))
        else:
            _load_divided(context, checkpoint, name, engine, step)
    if world == ranks.world:
        random_state.load(checkpoint.random(ranks.rank))
    else:  # other ranks than those that saved: their random states would not fit, new ones must not repeat
        random_state.seed(seed, ranks.rank, step)
        context.events.log(f"step {step} was saved by {world} ranks, and goes on with {ranks.world}")
    context.events.write("resumed", step=step, tier=tier)
    context.events.log(f"resumed from step {step}{' in memory' if tier == 'memory' else ''}")
    return state


def rejected_steps(context: Context, resumed: TrainState) -> set[int]:
    """The steps of checkpoints that are newer than the one that was resumed from: none of them is valid."""
    return {step for step in manifest.steps(context.paths.checkpoints) if step > (resumed.step or -1)}


def _newest(context: Context) -> tuple[int | None, int]:
    """(step, world) of the newest valid checkpoint; newer ones that are invalid are reported. All ranks together."""
    folder = context.paths.checkpoints
    newest, rejected = _whole_on_disk(context)
    stays = f"it stays in {folder} until checkpoint.keep ({context.recipe.checkpoint.keep}) newer ones are saved"
    for reason in rejected:
        context.events.write("checkpoint", rejected=f"{reason}; {stays}")
        context.events.log(f"rejected a checkpoint: {reason}; {stays}")
    if foreign := [reason for reason in rejected if manifest.FOREIGN in reason]:  # sound, and not for us to drop
        right = "resume the run with the version that saved it, or start a new run from it with model.init_from"
        raise BadInput(f"{foreign[0]}; {right}")
    return (newest.step, newest.world) if newest else (None, 0)


def _whole_on_disk(context: Context) -> tuple[manifest.Manifest | None, list[str]]:
    """The newest valid checkpoint, and why newer ones are rejected. Each rank reads a part of its files."""
    ranks, folder = context.ranks, context.paths.checkpoints
    if ranks.first:
        folder.mkdir(exist_ok=True)
        manifest.sweep(folder)
    rejected, below = list[str](), math.inf
    while True:
        looked = manifest.newest(folder, contents=False, below=below) if ranks.first else None
        newest, invalid = ranks.from_first(looked)
        rejected += invalid
        if newest is None:
            return None, rejected
        largest_first = sorted(newest.files, key=lambda name: int(newest.files[name]["bytes"]), reverse=True)
        ours = largest_first[ranks.rank :: ranks.world]
        reasons = ranks.gather(manifest.damage(context.paths.checkpoint(newest.step), newest, ours))
        if not any(reasons):
            return newest, rejected
        rejected.append(next(filter(None, reasons)))
        below = newest.step


def _check_layout(state: TrainState, name: str, engine: Saveable) -> None:
    """Raises `BadInput` where the optimiser's state would not fit; stages 1 and 2 save the same."""
    saved, now = state.layouts.get(name, {}), engine.layout
    keys = {"stage": "deepspeed.stage", "precision": "precision", "groups": "parameters that share a learning rate:"}
    different = [key for key in keys if saved and key in now and saved[key] != now[key]]
    if different and not (different == ["stage"] and {saved["stage"], now["stage"]} == {1, 2}):
        what = ", ".join(f"{keys[key]} {saved[key]} (now {now[key]})" for key in different)
        right = "resume with what it was saved with, or start a new run from it with model.init_from"
        raise BadInput(f"step {state.step} was saved with {what}; {right}")


def _check_frozen(context: Context, checkpoint: CheckpointPaths, name: str, engine: Saveable) -> None:
    """Raises `BadInput` where the frozen weights of a checkpoint are neither kept whole nor those of the model as it
    was built now. Lost ones are written again, and so are those that `checkpoint.keep_base` now wants to have."""
    weights, ranks = checkpoint.engine(name) / WEIGHTS, context.ranks
    # In the memory tier each node has a path of its own to them.
    folder = frozen_weights.place(weights) if ranks.first and weights.is_file() else None
    if not ranks.from_first(folder is not None):
        return
    damage = next(filter(None, ranks.gather(frozen_weights.damage(weights, rank=ranks.rank, world=ranks.world))), None)
    kept, named = ranks.from_first(
        (damage is None and frozen_weights.is_kept(folder), folder.name) if folder is not None else None
    )
    if kept:
        if folder is not None:
            frozen_weights.note_whole(folder)
        return
    share = engine.weights_to_keep()
    model = keep_frozen.contents(context, share or {})
    if frozen_weights.name_of(model) != named:
        begun = ", ".join(f"{field}: {source}" for field, source in keep_frozen.sources(context.recipe).items())
        what = damage or f"{context.paths.frozen / named} has no weights, as checkpoint.keep_base says"
        wrong = f"{what}, and the model as it is built now has other frozen weights than {checkpoint.root.name}"
        right = "put one of the two back" if damage else "put that model back as it was"
        raise BadInput(f"{wrong} ({begun}); {right}")
    if share is None or not (damage or keep_frozen.copies(context)):
        return
    if not keep_frozen.keep(context, share, model, keep_frozen.is_too_full):
        raise DiskFull(f"no room for the frozen weights; make room in {context.paths.frozen} and resume the run")
    if damage:
        context.events.warn(f"{damage}: it is written again from the model that the run began with", step=0)


def _load_divided(context: Context, checkpoint: CheckpointPaths, name: str, engine: Saveable, step: int) -> None:
    """Load what another number of ranks has saved, each rank a part of it."""
    ranks = context.ranks
    folder, converted = checkpoint.engine(name), manifest.staging(context.paths.checkpoints, step)
    if ranks.first:
        _check_free_space(context, step)
    pieces = engine.convert(folder, converted) if ranks.first else iter(())
    while ranks.any(next(pieces, True) is None):  # that they agree after each piece shows that all are alive
        pass
    engine.load_converted(folder, converted)
    ranks.any(False)  # not before all have read it
    if ranks.first:
        shutil.rmtree(converted)


def _check_free_space(context: Context, step: int) -> None:
    """Room for another copy of a checkpoint: torch's own word for a full disk is `enforce fail`."""
    folder = context.paths.checkpoints
    needed = manifest.validate(context.paths.checkpoint(step), contents=False).bytes
    if shutil.disk_usage(folder).free < needed:
        what = f"no room to prepare step {step} for {context.ranks.world} ranks"
        raise DiskFull(f"{what}; free {needed / 2**20:.1f} MiB in {folder} and resume the run")
