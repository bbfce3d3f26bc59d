"""Saving: all ranks together copy their state into memory, write it beside the training, and seal it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mmjobs.checkpoint import keep_frozen, random_state, retention
from mmjobs.checkpoint.background import Background, write
from mmjobs.checkpoint.memory_tier import MemoryTier
from mmjobs.checkpoint.saveable import Engines
from mmjobs.checkpoint.train_state import TrainState
from mmjobs.engine.checkpoint_io import Files
from mmjobs.model import frozen_weights
from mmjobs.rank.context import Context
from mmjobs.rank.disk import DiskFull, is_full
from mmlaunch.run import manifest
from mmlaunch.run.manifest import Entry
from mmlaunch.run.paths import CheckpointPaths

DONE, FULL, WRITING = range(3)
"""How far a rank is with the files of a checkpoint; the ranks agree on the highest."""


@dataclass
class Saving:
    """A checkpoint that is begun and not yet whole."""

    step: int
    folder: Path
    started: float
    work: Background
    """What this rank is busy with: first its files, and then, on rank 0, the manifest."""
    memory: MemoryTier | None = None
    """Where it goes, if not to the disk."""
    files: dict[str, Entry] = field(default_factory=dict)
    """What this rank has written."""
    of_ranks: list[dict[str, Entry]] = field(default_factory=list)
    """What each rank has written, once all have."""
    stall: float = 0.0
    """Seconds that the training stood still for it."""


class CheckpointWriter:
    """Writes the checkpoints of one attempt, and deletes those that the recipe does not keep."""

    def __init__(
        self, context: Context, engines: Engines, rejected: Collection[int], memory: MemoryTier | None = None
    ) -> None:
        self._context, self._engines = context, engines
        self._paths, self._settings, self._ranks = context.paths, context.recipe.checkpoint, context.ranks
        self._rejected = set(rejected)
        self._memory = memory
        self._saving: Saving | None = None
        self._bytes = 0

    @property
    def writing(self) -> int:
        """How far this rank is with the checkpoint that it has begun."""
        if self._saving is None:
            return DONE
        if self._saving.work.going_on:
            return WRITING
        return FULL if self._saving.work.failure() else DONE

    def is_due_in_memory(self, step: int) -> bool:
        """Whether the nodes should remember this step; while another checkpoint is written, that one is enough."""
        return self._memory is not None and self._saving is None and self._memory.is_due(step)

    def save(self, state: TrainState, wait: bool) -> bool:
        """Begin one checkpoint, and `wait` for it or not; False when the disk is full and the run goes on without."""
        self.finish()  # the one before
        if not self._begin(state):
            return False
        # Who wants to stop at a full disk wants to stop here, and not a step later.
        if wait or not self._settings.background or self._settings.on_full_disk == "stop":
            return self.finish()
        return True

    def save_in_memory(self, state: TrainState) -> None:
        """Begin a checkpoint in the memory of the nodes; it takes the place of the one before when all have it."""
        self._begin(state, self._memory)
        if not self._settings.background:
            self.finish()

    def close(self) -> None:
        """The orderly end of an attempt: what is begun becomes whole, and the next attempt reads from the disk."""
        self.finish()
        if self._memory is not None:
            self._memory.forget()

    def _begin(self, state: TrainState, memory: MemoryTier | None = None) -> bool:
        """Copy the state, and let its files be written; False where the disk is full."""
        started = time.monotonic()
        folder = manifest.staging((memory.paths if memory else self._paths).checkpoints, state.step)
        ready = _background(memory, self._prepare, folder, memory)
        ready.wait()
        self._saving = Saving(state.step, folder, started, ready, memory)
        if self._ranks.any(self.writing == FULL) or not self._keep_frozen():
            self.advance(FULL)
            return False
        files = self._snapshot(folder, state)
        self._saving.work = _background(memory, write, files, folder, self._saving.files)
        self._saving.stall = time.monotonic() - started
        return True

    def advance(self, furthest: int) -> bool:
        """On all ranks, go on with the checkpoint that was begun, if they are done; False when the disk is full."""
        saving = self._saving
        if saving is None or furthest == WRITING:
            return True
        if furthest == FULL:
            self._saving = None
            self._give_up(saving)
            return False
        if not saving.of_ranks:  # the manifest is written after the last file of the last rank
            saving.of_ranks = self._ranks.gather(saving.files)
            saving.work = _background(saving.memory, self._seal, saving)
            return True
        self._saving = None
        if saving.memory is not None:
            saving.memory.keep_only(saving.step)
            return True
        seconds = {"seconds": time.monotonic() - saving.started, "stall": saving.stall}
        rounded = {name: round(value, 3) for name, value in seconds.items()}
        self._context.events.write("checkpoint", step=saving.step, **rounded, bytes=self._bytes)
        return True

    def finish(self) -> bool:
        """Wait for the checkpoint that was begun, on all ranks; False when the disk is full."""
        whole = True
        while self._saving is not None:
            began = time.monotonic()
            self._saving.work.wait()
            furthest = int(self._ranks.highest(self.writing)[0])
            self._saving.stall += time.monotonic() - began
            whole = self.advance(furthest)
        return whole

    def _snapshot(self, folder: Path, state: TrainState) -> Files:
        checkpoint, files = CheckpointPaths(folder), Files()
        for name, engine in self._engines.items():
            files |= engine.snapshot(checkpoint.new_engine(name))
        files[checkpoint.random(self._ranks.rank)] = random_state.content()
        if self._ranks.first:
            state.layouts = {name: engine.layout for name, engine in self._engines.items()}
            files[checkpoint.state] = state.text().encode()
        return files

    def _prepare(self, folder: Path, memory: MemoryTier | None) -> None:
        self._context.events.check_owner()
        if memory.leads if memory is not None else self._ranks.first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def _keep_frozen(self) -> bool:
        """Keep the frozen weights before the first checkpoint that names them; False where the disk is full."""
        for engine in self._engines.values():
            share = engine.weights_to_keep()
            if share is None:
                continue
            model = keep_frozen.contents(self._context, share)
            if not keep_frozen.keep(self._context, share, model, self._fails):
                return False
            engine.kept_as(frozen_weights.name_of(model))
        return True

    def _fails(self, work: Callable[[], None]) -> bool:
        """Whether the disk is too full for what is written before the files of a checkpoint."""
        assert self._saving is not None
        self._saving.work = _background(self._saving.memory, work)
        self._saving.work.wait()
        return self.writing == FULL

    def _seal(self, saving: Saving) -> None:
        self._context.events.check_owner()
        if saving.memory is not None:
            saving.memory.seal(saving.folder, saving.step, saving.of_ranks)
        elif self._ranks.first:
            files = {name: entry for rank in saving.of_ranks for name, entry in rank.items()}
            final = self._paths.checkpoint(saving.step)
            self._bytes = manifest.seal(saving.folder, final, saving.step, self._ranks.world, files).bytes
            self._rejected.discard(saving.step)
            retention.prune(self._paths, self._settings, saving.step, self._rejected)

    def _give_up(self, saving: Saving) -> None:
        why = saving.work.failure()
        if saving.memory is not None:
            saving.memory.forget()
            self._memory = None
            what = f"no more checkpoints in memory: {why or 'that of another node is full'}"
            self._context.events.warn(what, step=saving.step)
            return
        if self._ranks.first:
            shutil.rmtree(saving.folder, ignore_errors=True)
        what = f"no checkpoint of step {saving.step}: {why or 'the disk of another rank is full'}"
        if self._settings.on_full_disk == "stop":
            raise DiskFull(f"{what}; make room in {self._paths.checkpoints} and resume the run")
        self._context.events.warn(what, step=saving.step)


def _background(memory: MemoryTier | None, work: Callable[..., None], *arguments: Any) -> Background:
    """Whatever is wrong with the memory of a node costs the checkpoints there, and not the run."""
    return Background(partial(work, *arguments), is_full if memory is None else lambda _: True)
