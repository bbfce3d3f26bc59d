"""Saving: all ranks together copy their state into memory, write it beside the training, and seal it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from mmjobs.checkpoint import random_state, retention
from mmjobs.checkpoint.background import Background, write
from mmjobs.checkpoint.saveable import Engines
from mmjobs.checkpoint.train_state import TrainState
from mmjobs.engine.checkpoint_io import Files
from mmjobs.model import frozen_weights
from mmjobs.rank.context import Context
from mmjobs.rank.disk import DiskFull
from mmlaunch.run import manifest
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
    files: dict[str, int] = field(default_factory=dict)
    """What all ranks write, with the size of each."""
    written: bool = False
    stall: float = 0.0
    """Seconds that the training stood still for it."""


class CheckpointWriter:
    """Writes the checkpoints of one attempt, and deletes those that the recipe does not keep."""

    def __init__(self, context: Context, engines: Engines, rejected: Collection[int]) -> None:
        self._context, self._engines = context, engines
        self._paths, self._settings, self._ranks = context.paths, context.recipe.checkpoint, context.ranks
        self._rejected = set(rejected)
        self._saving: Saving | None = None
        self._kept: dict[str, str] = {}
        """Under which name the run keeps the frozen weights of each engine."""
        self._bytes = 0

    @property
    def writing(self) -> int:
        """How far this rank is with the checkpoint that it has begun."""
        if self._saving is None:
            return DONE
        if self._saving.work.going_on:
            return WRITING
        return FULL if self._saving.work.full() else DONE

    def save(self, state: TrainState, wait: bool) -> bool:
        """Begin one checkpoint, and `wait` for it or not; False when the disk is full and the run goes on without."""
        self.finish()  # the one before
        started = time.monotonic()
        folder = manifest.staging(self._paths.checkpoints, state.step)
        offered = {name: engine.weights_to_keep() for name, engine in self._engines.items()}
        frozen = {name: weights for name, weights in offered.items() if weights is not None}
        ready = Background(partial(self._prepare, folder, frozen))
        names = list(frozen)
        del offered, frozen  # they may be as large as the model
        ready.wait()
        self._saving = Saving(state.step, folder, started, ready)
        if self._ranks.any(self.writing == FULL):
            self.advance(FULL)
            return False
        for name in names:
            self._engines[name].kept_as(self._kept.get(name))
        files = self._snapshot(folder, state)
        sizes = {path.relative_to(folder).as_posix(): len(content) for path, content in files.items()}
        self._saving.files = {name: size for rank in self._ranks.gather(sizes) for name, size in rank.items()}
        self._saving.work = Background(partial(write, files))
        self._saving.stall = time.monotonic() - started
        # Who wants to stop at a full disk wants to stop here, and not a step later.
        if wait or not self._settings.background or self._settings.on_full_disk == "stop":
            return self.finish()
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
        if not saving.written:  # by all ranks: the manifest is written after the last file of the last one
            saving.written, saving.work = True, Background(partial(self._seal, saving))
            return True
        self._saving = None
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

    def _prepare(self, folder: Path, frozen: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Make the folder, and keep the frozen weights before the first checkpoint that names them."""
        self._context.events.check_owner()
        if self._ranks.first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            self._kept |= {name: frozen_weights.keep(self._paths, weights) for name, weights in frozen.items()}

    def _seal(self, saving: Saving) -> None:
        self._context.events.check_owner()
        if self._ranks.first:
            final = self._paths.checkpoint(saving.step)
            self._bytes = manifest.seal(saving.folder, final, saving.step, self._ranks.world, saving.files).bytes
            self._rejected.discard(saving.step)
            retention.prune(self._paths, self._settings, saving.step, self._rejected)

    def _give_up(self, saving: Saving) -> None:
        if self._ranks.first:
            shutil.rmtree(saving.folder, ignore_errors=True)
        what = f"no checkpoint of step {saving.step}: {saving.work.full() or 'the disk of another rank is full'}"
        if self._settings.on_full_disk == "stop":
            raise DiskFull(f"{what}; make room in {self._paths.checkpoints} and resume the run")
        self._context.events.warn(what, step=saving.step)
