"""Checkpoints: saved by all ranks together, found again, and deleted when newer ones have taken their place."""

from __future__ import annotations

import io
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from mmjobs.checkpoint.background import Background, write
from mmjobs.checkpoint.train_state import NAME as STATE
from mmjobs.checkpoint.train_state import Progress
from mmjobs.data.sampler import seed_of
from mmjobs.engine.checkpoint_io import Files
from mmjobs.engine.engine import Engine
from mmjobs.rank.disk import DiskFull
from mmjobs.rank.events import EventWriter
from mmjobs.rank.ranks import Ranks
from mmlaunch.errors import BadInput
from mmlaunch.recipe.checkpoint import Checkpoint
from mmlaunch.run import manifest
from mmlaunch.run.paths import RunPaths

DONE, FULL, GOING_ON = range(3)


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


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(
        self,
        paths: RunPaths,
        settings: Checkpoint,
        seed: int,
        ranks: Ranks,
        events: EventWriter,
        beside: Mapping[str, Callable[[], bytes]] | None = None,  # files that rank 0 adds, by name
    ) -> None:
        self._beside = beside or {}
        self._paths, self._settings, self._seed = paths, settings, seed
        self._ranks, self._journal = ranks, events
        self._rejected: set[int] = set()
        self._saving: Saving | None = None
        self._bytes = 0

    def resume(self, engine: Engine) -> Progress:
        """Take up the newest valid checkpoint on all ranks, or begin at step 0."""
        found = self._find() if self._ranks.first else None
        step, world = self._ranks.from_first(found)
        if step is None:
            self._seed_random(0)
            return Progress()
        folder = self._paths.checkpoint(step)
        progress = Progress.read(folder)
        _check(progress, engine)
        if world == self._ranks.world or not engine.stage:
            engine.load(folder)
        else:
            self._load_divided(engine, step)
        if world == self._ranks.world:
            _set_random(torch.load(folder / self._random_name, weights_only=True))
        else:  # other ranks than those that saved: their random states would not fit, new ones must not repeat
            self._seed_random(step)
            self._journal.say(f"step {step} was saved by {world} ranks, and goes on with {self._ranks.world}")
        self._journal.event("resumed", step=step)
        self._journal.say(f"resumed from step {step}")
        return progress

    @property
    def writing(self) -> int:
        """How far this rank is with the work on a checkpoint that it has begun; the ranks agree on the highest."""
        if self._saving is None:
            return DONE
        if self._saving.work.going_on:
            return GOING_ON
        return FULL if self._saving.work.full() else DONE

    def save(self, engine: Engine, progress: Progress, wait: bool) -> bool:
        """Begin one checkpoint, and `wait` for it or not; False when the disk is full and the run goes on without."""
        self.finish()  # the one before
        started = time.monotonic()
        folder = manifest.staging(self._paths.checkpoints, progress.step)
        ready = Background(partial(self._make_empty, folder))
        ready.wait()
        self._saving = Saving(progress.step, folder, started, ready)
        if self._ranks.any(self.writing == FULL):
            self.advance(FULL)
            return False
        progress.layout = engine.layout
        files = self._snapshot(folder, engine, progress)
        mine = {path.relative_to(folder).as_posix(): len(content) for path, content in files.items()}
        self._saving.files = {name: size for one in self._ranks.gather(mine) for name, size in one.items()}
        self._saving.work = Background(partial(write, files))
        self._saving.stall = time.monotonic() - started
        # Who wants to stop at a full disk wants to stop here, and not a step later.
        if wait or not self._settings.background or self._settings.on_full_disk == "stop":
            return self.finish()
        return True

    def advance(self, agreed: int) -> bool:
        """On all ranks, go on with the checkpoint that was begun as far as they are; False when the disk is full."""
        saving = self._saving
        if saving is None or agreed == GOING_ON:
            return True
        if agreed == FULL:
            self._saving = None
            self._give_up(saving)
            return False
        if not saving.written:  # by all ranks: the manifest is written after the last file of the last one
            saving.written, saving.work = True, Background(partial(self._seal, saving))
            return True
        self._saving = None
        seconds = {"seconds": time.monotonic() - saving.started, "stall": saving.stall}
        rounded = {name: round(value, 3) for name, value in seconds.items()}
        self._journal.event("checkpoint", step=saving.step, **rounded, bytes=self._bytes)
        return True

    def finish(self) -> bool:
        """Wait for the checkpoint that was begun, on all ranks; False when the disk is full."""
        fine = True
        while self._saving is not None:
            began = time.monotonic()
            self._saving.work.wait()
            agreed = int(self._ranks.highest(self.writing)[0])
            self._saving.stall += time.monotonic() - began
            fine = self.advance(agreed)
        return fine

    def _load_divided(self, engine: Engine, step: int) -> None:
        """Load what another number of ranks has saved, each rank a part of it."""
        folder, converted = self._paths.checkpoint(step), manifest.staging(self._paths.checkpoints, step)
        if self._ranks.first:
            self._check_room(step)
        pieces = engine.convert(folder, converted) if self._ranks.first else iter(())
        while self._ranks.any(next(pieces, True) is None):  # that they ask after each piece shows that all are alive
            pass
        engine.load_converted(folder, converted)
        self._ranks.any(False)  # not before all have read it
        if self._ranks.first:
            shutil.rmtree(converted)

    def _check_room(self, step: int) -> None:
        """For another copy of a checkpoint: torch's own word for a full disk is `enforce fail`."""
        needed = manifest.validate(self._paths.checkpoint(step), contents=False).bytes
        if shutil.disk_usage(self._paths.checkpoints).free < needed:
            what = f"no room to prepare step {step} for {self._ranks.world} ranks"
            raise DiskFull(f"{what}; free {needed / 2**20:.1f} MiB in {self._paths.checkpoints} and resume the run")

    def _find(self) -> tuple[int | None, int]:
        """(step, world) of the newest valid checkpoint; those that are newer and invalid are reported."""
        self._paths.checkpoints.mkdir(exist_ok=True)
        manifest.sweep(self._paths.checkpoints)
        found, rejected = manifest.newest(self._paths.checkpoints)
        for reason in rejected:
            self._journal.event("checkpoint", rejected=reason)
            self._journal.say(f"rejected a checkpoint: {reason}")
        newest = found.step if found else -1
        self._rejected = {step for step in manifest.steps(self._paths.checkpoints) if step > newest}
        if foreign := [reason for reason in rejected if manifest.FOREIGN in reason]:  # sound, and not for us to drop
            right = "resume the run with the version that saved it, or start a new run from it with model.init_from"
            raise BadInput(f"{foreign[0]}; {right}")
        return (found.step, found.world) if found else (None, 0)

    @property
    def _random_name(self) -> str:
        return f"rank-{self._ranks.rank}.pt"

    def _seed_random(self, step: int) -> None:
        torch.manual_seed(seed_of("rank", self._seed, self._ranks.rank, step))

    def _snapshot(self, folder: Path, engine: Engine, progress: Progress) -> Files:
        files = engine.snapshot(folder)
        if self._ranks.first:
            files |= {folder / name: content() for name, content in self._beside.items()}
        random = io.BytesIO()
        torch.save(_random(), random)
        files[folder / self._random_name] = random.getbuffer()
        if self._ranks.first:
            files[folder / STATE] = progress.text().encode()
        return files

    def _make_empty(self, folder: Path) -> None:
        if self._ranks.first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def _seal(self, saving: Saving) -> None:
        if self._ranks.first:
            final = self._paths.checkpoint(saving.step)
            self._bytes = manifest.seal(saving.folder, final, saving.step, self._ranks.world, saving.files).bytes
            self._rejected.discard(saving.step)
            self._prune(saving.step)

    def _give_up(self, saving: Saving) -> None:
        if self._ranks.first:
            shutil.rmtree(saving.folder, ignore_errors=True)
        what = f"no checkpoint of step {saving.step}: {saving.work.full() or 'the disk of another rank is full'}"
        if self._settings.on_full_disk == "stop":
            raise DiskFull(f"{what}; make room in {self._paths.checkpoints} and resume the run")
        self._journal.warn(what, step=saving.step)

    def _prune(self, newest: int) -> None:
        """Delete what the recipe does not keep. Only sealed ones count, and `newest` is one: it is never deleted."""
        older = [step for step in manifest.steps(self._paths.checkpoints) if step <= newest]
        steps = [step for step in older if step not in self._rejected]
        valid = [step for step in steps if step == newest or self._is_whole(step)]
        kept = set(valid[-self._settings.keep :])
        if self._settings.keep_every:
            kept |= {step for step in valid if step % self._settings.keep_every == 0}
        kept |= self._best(valid)
        for step in steps:
            if step not in kept:
                # Under the name of an unfinished one first: killed in the middle, it is swept and never mistaken.
                doomed = self._paths.checkpoint(step).rename(manifest.staging(self._paths.checkpoints, step))
                shutil.rmtree(doomed, ignore_errors=True)

    def _is_whole(self, step: int) -> bool:
        try:
            manifest.validate(self._paths.checkpoint(step), contents=False)
        except manifest.InvalidCheckpoint:
            return False
        return True

    def _best(self, valid: list[int]) -> set[int]:
        """The step whose own evaluation was the best, when the recipe keeps it."""
        values: dict[int, float] = {}
        for step in valid if self._settings.best else ():
            progress = Progress.read(self._paths.checkpoint(step))
            value = progress.metrics.get(self._settings.best or "", math.nan)
            if progress.evaluated == step and math.isfinite(value):
                values[step] = value
        sign = 1 if self._settings.best_is == "highest" else -1
        return {max(values, key=lambda step: (sign * values[step], step))} if values else set()


def _check(progress: Progress, engine: Engine) -> None:
    """Raises `BadInput` where the optimiser's state would not fit; stages 1 and 2 save the same."""
    saved, now = progress.layout, engine.layout
    names = {"stage": "deepspeed.stage", "precision": "precision", "groups": "parameters that share a learning rate:"}
    other = [key for key in names if saved and saved[key] != now[key]]
    if other and not (other == ["stage"] and {saved["stage"], now["stage"]} == {1, 2}):
        told = ", ".join(f"{names[key]} {saved[key]} (now {now[key]})" for key in other)
        right = "resume with what it was saved with, or start a new run from it with model.init_from"
        raise BadInput(f"step {progress.step} was saved with {told}; {right}")


def _random() -> dict[str, torch.Tensor]:
    """The random states that dropout draws from."""
    on_device = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state(), **on_device}


def _set_random(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
