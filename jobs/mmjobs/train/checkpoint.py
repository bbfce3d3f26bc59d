"""Checkpoints: saved by all ranks together, found again, and deleted when newer ones have taken their place."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mmjobs.data.order import seed_of
from mmjobs.train.disk import DiskFull, is_full
from mmjobs.train.engine import Engine
from mmjobs.train.journal import Journal
from mmjobs.train.progress import Progress
from mmjobs.train.ranks import Ranks
from mmlaunch.errors import BadInput
from mmlaunch.recipe.checkpoint import Checkpoint
from mmlaunch.run import manifest
from mmlaunch.run.paths import RunPaths


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, paths: RunPaths, settings: Checkpoint, seed: int, ranks: Ranks, journal: Journal) -> None:
        self._paths, self._settings, self._seed = paths, settings, seed
        self._ranks, self._journal = ranks, journal
        self._rejected: set[int] = set()
        self._full: OSError | None = None
        self._bytes = 0

    def resume(self, engine: Engine) -> Progress:
        """Take up the newest valid checkpoint on all ranks, or begin at step 0."""
        found = self._find() if self._ranks.first else None
        step, world = self._ranks.from_first(found)
        if step is None:
            self._seed_random(0)
            return Progress()
        folder = self._paths.checkpoint(step)
        if world != self._ranks.world and engine.stage:
            what = f"step {step} was saved by {world} ranks at ZeRO stage {engine.stage}, each a part of it"
            raise BadInput(f"{what}; resume on {world} ranks (only stage 0 goes on with {self._ranks.world})")
        engine.load(folder)
        if world == self._ranks.world:
            _set_random(torch.load(folder / self._random_name, weights_only=True))
        else:  # other ranks than those that saved: their random states would not fit, new ones must not repeat
            self._seed_random(step)
        self._journal.event("resumed", step=step)
        self._journal.say(f"resumed from step {step}")
        return Progress.read(folder)

    def save(self, engine: Engine, progress: Progress) -> bool:
        """Write one checkpoint; False when the disk is full and the recipe says to go on without."""
        started = time.monotonic()
        folder, final = manifest.staging(self._paths.checkpoints, progress.step), self._paths.checkpoint(progress.step)
        # Each stage ends when all ranks have ended it; so the manifest is written after the last file of the last rank.
        stages: tuple[Callable[[], None], ...] = (
            lambda: self._make_empty(folder),
            lambda: self._write(folder, engine, progress),
            lambda: self._seal(folder, final, progress.step),
        )
        if not all(self._succeeds(stage) for stage in stages):
            self._give_up(folder, progress.step)
            return False
        if self._ranks.first:
            seconds = round(time.monotonic() - started, 3)
            self._journal.event("checkpoint", step=progress.step, seconds=seconds, bytes=self._bytes)
            self._rejected.discard(progress.step)
            self._prune(progress.step)
        return True

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
        return (found.step, found.world) if found else (None, 0)

    @property
    def _random_name(self) -> str:
        return f"rank-{self._ranks.rank}.pt"

    def _seed_random(self, step: int) -> None:
        torch.manual_seed(seed_of("rank", self._seed, self._ranks.rank, step))

    def _write(self, folder: Path, engine: Engine, progress: Progress) -> None:
        engine.save(folder)
        with (folder / self._random_name).open("wb") as file:
            torch.save(_random(), file)
        if self._ranks.first:
            progress.write(folder)

    def _make_empty(self, folder: Path) -> None:
        if self._ranks.first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def _seal(self, folder: Path, final: Path, step: int) -> None:
        if self._ranks.first:
            self._bytes = manifest.seal(folder, final, step, self._ranks.world).bytes

    def _succeeds(self, stage: Callable[[], None]) -> bool:
        """Run a stage on this rank; whether it succeeded on all. Only a full disk is an answer, the rest are errors."""
        failed = False
        try:
            stage()
        except OSError as error:
            if not is_full(error):
                raise
            self._full, failed = error, True
        return not self._ranks.any(failed)

    def _give_up(self, folder: Path, step: int) -> None:
        if self._ranks.first:
            shutil.rmtree(folder, ignore_errors=True)
        what = f"no checkpoint of step {step}: {self._full or 'the disk of another rank is full'}"
        if self._settings.on_full_disk == "stop":
            raise DiskFull(f"{what}; make room in {self._paths.checkpoints} and resume the run")
        self._journal.warn(what, step=step)

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
            if progress.evaluated == step and self._settings.best in progress.metrics:
                values[step] = progress.metrics[self._settings.best]
        sign = 1 if self._settings.best_is == "highest" else -1
        return {max(values, key=lambda step: (sign * values[step], step))} if values else set()


def _random() -> dict[str, torch.Tensor]:
    """The random states that dropout draws from."""
    on_device = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state(), **on_device}


def _set_random(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
