"""Steps whose loss or gradient is no number: left out and counted, and the end of the run when they do not cease."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mmjobs.checkpoint.train_state import Progress
from mmjobs.data.batch import Batch
from mmjobs.engine.engine import Engine, Update
from mmjobs.rank.events import EventWriter
from mmjobs.rank.ranks import Ranks
from mmlaunch.run.paths import RunPaths


class NotFinite(ArithmeticError):
    """A loss or a gradient that is not a number. The weights are those of the last good step."""

    def __init__(self, what: str, sample: str | None) -> None:
        self.sample = sample
        super().__init__(what)


class NonFiniteGuard:
    """Judges each step; all ranks come to the same judgement."""

    def __init__(self, paths: RunPaths, ranks: Ranks, events: EventWriter, tolerated: int) -> None:
        self._folder = paths.attempt(events.attempt).root / "not-finite"
        self._ranks, self._journal, self._tolerated = ranks, events, tolerated

    def judge(self, progress: Progress, loss: float, update: Update, batches: Sequence[Batch], bad: list[str]) -> None:
        """Raises `NotFinite` when more steps in a row than are tolerated were left out; `bad` samples are suspected."""
        if math.isfinite(loss) and (math.isfinite(update.norm) or update.rescaled):
            progress.streak = 0
            return
        progress.streak += 1
        progress.left_out += 1
        step = progress.step
        what = f"the loss of step {step} is {loss}"
        if math.isfinite(loss):
            what, bad = (
                f"the gradient of step {step} is not finite",
                [str(o) for batch in batches for o in batch.origins],
            )
        samples = [sample for rank in self._ranks.gather(bad) for sample in rank]
        shown = ", ".join(samples[:8]) + (f" and {len(samples) - 8} more" if len(samples) > 8 else "")
        what = f"{what}; samples: {shown or 'unknown'}"
        if progress.streak > self._tolerated or math.isfinite(update.norm):
            self._keep(batches)
            often = f", number {progress.streak} in a row" if progress.streak > 1 else ""
            raise NotFinite(f"{what}{often}; the batch is in not-finite/", samples[0] if samples else None)
        self._journal.warn(f"step {step} changes nothing: {what}", step=step)

    def check(self, progress: Progress, engine: Engine) -> None:
        """Before a save after a step that was left out: weights that are no numbers are never saved."""
        if progress.streak and self._ranks.any(not engine.is_finite()):
            raise NotFinite(f"the weights themselves are not finite at step {progress.step}", None)

    def _keep(self, batches: Sequence[Batch]) -> None:
        """Each rank its own rows, for inspection."""
        self._folder.mkdir(exist_ok=True)
        kept = [
            {
                "ids": batch.ids, "targets": batch.targets, "attention": batch.attention, "positions": batch.positions,
                "owners": batch.owners, "seen": batch.image_inputs, "trees": batch.trees, "reference": batch.reference,
                "samples": [str(origin) for origin in batch.origins],
            }
            for batch in batches
        ]  # fmt: skip
        torch.save(kept, self._folder / f"rank-{self._ranks.rank}.pt")
