"""The loop: from step to step, with everything that is due in between."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from mmjobs.checkpoint.save import Checkpoints
from mmjobs.checkpoint.train_state import Progress
from mmjobs.data.batch import Batch
from mmjobs.data.example import BadRow
from mmjobs.data.sampler import Batches
from mmjobs.engine.engine import Engine, Update
from mmjobs.engine.reference_copy import ReferenceCopy
from mmjobs.metrics.mfu import ModelFlops
from mmjobs.metrics.tensorboard import Board
from mmjobs.metrics.throughput import Throughput
from mmjobs.metrics.totals import Totals, summary
from mmjobs.objectives.objective import Objective, Stateful
from mmjobs.rank.boundary import Boundary, Interrupted, RequeueRequested
from mmjobs.rank.disk import DiskFull
from mmjobs.rank.events import EventWriter
from mmjobs.rank.position import Position
from mmjobs.rank.ranks import Ranks
from mmjobs.rank.watchdog import Phase
from mmjobs.train import skipped_rows
from mmjobs.train.evaluate import Evaluation, look_ahead
from mmjobs.train.nonfinite import NonFiniteGuard, NotFinite
from mmjobs.train.samples import draw
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.run.paths import RunPaths


@dataclass
class Trainer:
    """One attempt at a run, on one rank."""

    recipe: Recipe
    paths: RunPaths
    steps: int
    micro_batches: Batches
    ranks: Ranks
    engine: Engine
    objective: Objective
    batches: Iterator[Batch]
    evaluation: Evaluation
    checkpoints: Checkpoints
    agenda: Boundary
    events: EventWriter
    board: Board
    where: Position
    progress: Progress
    finite: NonFiniteGuard
    moving: ReferenceCopy | None = None
    """A reference that follows the policy."""
    work: ModelFlops | None = None
    """What a step has to compute, where it is known what the device can."""
    skipped: int = 0
    """Rows of this rank whose images turned out to be damaged."""

    def run(self) -> dict[str, Any]:
        """Train to the last step; raises `RequeueRequested` when there is a reason to go on later."""
        self.pace = Throughput(self.recipe.batch.examples, self.work)
        while True:
            last = self.progress.step == self.steps
            due = self.agenda.due(self.progress.step, last, self.checkpoints.writing)
            self.checkpoints.advance(due.writing)
            if due.stop:
                self._stop(due.stop)
            improved = due.evaluate and self._evaluate()
            if due.save or improved:
                self._save()
            if last:
                self._finish_saving()
                self.board.flush()
                return {"step": self.progress.step, "metrics": self.progress.metrics}
            try:
                self._step()
            except NotFinite:  # on all ranks: there is time for the checkpoint that is being written
                self._finish_saving()
                raise

    def _step(self) -> None:
        """One optimiser step over one global batch."""
        number = self.progress.step + 1
        self.where.step = number
        self.ranks.watch.enter(Phase.STEP)
        batches = [next(self.batches) for _ in self.micro_batches(self.progress.cursor)]
        self._skipped([row for batch in batches for row in batch.skipped])
        mine = [self.objective.units(batch) for batch in batches]
        learnt = sum(int(batch.loss_mask.sum()) for batch in batches)
        held = sum(batch.tokens for batch in batches if len(batch))  # an empty row has one token, for nothing
        room = sum(max(self.recipe.batch.tokens_per_gpu or 0, batch.ids.numel()) for batch in batches)
        *counts, learnt_of_all, held_of_all, room_of_all = self.ranks.sums(
            *(sum(one[unit] for one in mine) for unit in self.objective.over), learnt, held, room
        )
        if not any(counts):
            raise BadInput(f"no example of step {number} can be used; see {self.paths.skipped}")
        units = dict(zip(self.objective.over, counts, strict=True))
        totals = Totals(self.objective)
        doubtful = []
        look_ahead(self.objective, self.engine, self.ranks, batches, learning=True)
        for batch, own, measured in zip(
            batches, mine, self.engine.train_on(batches, self.objective, units), strict=True
        ):
            totals.add(measured, own)
            finite = measured.each.isfinite().tolist()
            doubtful += [str(origin) for origin, good in zip(batch.origins, finite, strict=True) if not good]
        totals.reduce(self.ranks)
        means = totals.means()
        update = self.engine.step(self.progress.step)
        self.progress.step = number
        self.progress.cursor += self.recipe.batch.examples
        self.finite.judge(self.progress, means["loss"], update, batches, doubtful)
        done = math.isfinite(update.norm) and not self.progress.streak  # a step that was left out has taught nothing
        if self.moving is not None and done:
            self.moving.stepped(self.engine.network, number)
        if isinstance(self.objective, Stateful):
            if done:
                self.objective.learn(totals.sums())
            self.progress.objective = self.objective.state()
        self.agenda.step_seconds = self.pace.step(learnt_of_all, batches, held_of_all / room_of_all)
        self.ranks.watch.stepped(self.agenda.step_seconds)
        if number % self.recipe.log.every == 0 or number in (1, self.steps):
            self._log(summary(self.objective, means), update)

    def _skipped(self, rows: Sequence[BadRow]) -> None:
        """Each rank lists its own; the first one says how many there were."""
        skipped_rows.add(self.paths, rows)
        self.skipped += len(rows)

    def _log(self, means: dict[str, float], update: Update) -> None:
        step, pace = self.progress.step, self.pace.lap()
        numbers = {**means, "lr": update.lr, "grad_norm": update.norm, **pace.numbers()}
        numbers |= {"left_out": self.progress.left_out} if self.progress.left_out else {}
        self.events.event("step", step=step, steps=self.steps, **numbers)
        self.board.scalars({f"train/{name}": value for name, value in numbers.items()}, step)
        shown = [f"step {step:>{len(str(self.steps))}}/{self.steps}", f"loss {means['loss']:.3f}"]
        shown += [f"accuracy {100 * means['accuracy']:.1f} %"] if "accuracy" in means else []
        self.events.say("  ".join([*shown, str(pace), f"{pace.left(self.steps - step)} left"]))

    def _evaluate(self) -> bool:
        """Measure the held-out examples; whether they are better than ever before, where the recipe keeps the best."""
        step = self.progress.step
        if not len(self.evaluation.held_out):
            self.agenda.evaluating.done(step)
            return False
        self.ranks.watch.enter(Phase.EVALUATE)
        try:
            metrics = self.evaluation.measure(self.engine, self.objective, self._between_batches)
        except Interrupted as reason:
            self._stop(str(reason))
        self.progress.evaluated, self.progress.metrics = step, metrics
        wanted = self.recipe.evaluate.samples if self.ranks.first or self.engine.sharded else 0
        samples = draw(self.engine, self.evaluation.processor, self.evaluation.held_out, wanted)
        told = [{"question": s.question, "truth": s.truth, "answer": s.answer} for s in samples]
        self.events.event("evaluated", step=step, metrics=metrics, samples=told)
        self.board.scalars(metrics, step)
        self.board.samples(samples, step)
        self.board.flush()
        self.events.say(
            f"evaluated  step {step}  " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        )
        self.agenda.evaluating.done(step)
        self.pace.pause()
        return self._improved(metrics)

    def _improved(self, metrics: dict[str, float]) -> bool:
        if self.recipe.checkpoint.best is None:
            return False
        value, best = metrics.get(self.recipe.checkpoint.best, math.nan), self.progress.best
        if not math.isfinite(value):
            return False
        better = best is None or (value > best if self.recipe.checkpoint.best_is == "highest" else value < best)
        self.progress.best = value if better else best
        return better

    def _between_batches(self) -> None:
        self.checkpoints.advance(self.agenda.check(self.checkpoints.writing))

    def _save(self, wait: bool = False) -> bool:
        """False when the disk is full, and the recipe lets the run go on without this checkpoint."""
        step = self.progress.step
        if self.agenda.saving.done_at(step):
            return True
        self.ranks.watch.enter(Phase.SAVE)
        self.finite.check(self.progress, self.engine)
        self.board.flush()  # first: what a checkpoint has behind it is not done again
        saved = self.checkpoints.save(self.engine, self.progress, wait or step == self.steps)
        if not saved and step == self.steps:
            raise DiskFull(f"the disk is full, and step {step} is the result of the run; make room and resume it")
        self.agenda.saving.done(step)
        self.pace.pause()
        return saved

    def _finish_saving(self) -> None:
        self.ranks.watch.enter(Phase.SAVE)
        self.checkpoints.finish()

    def _stop(self, reason: str) -> NoReturn:
        """Save what was done since the last checkpoint, and leave."""
        self.events.event("signal", name=reason, step=self.progress.step)
        self.events.say(f"{reason}: saving step {self.progress.step} to go on later")
        if self.progress.step and not self._save(wait=True):  # whoever asks to go on must have saved
            kept = self.paths.checkpoints
            raise DiskFull(f"{reason}: the disk is full, and step {self.progress.step} is lost; make room in {kept}")
        self._finish_saving()
        raise RequeueRequested(reason)
