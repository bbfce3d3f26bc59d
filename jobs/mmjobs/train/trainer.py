"""The trainer: the loop from step to step, with everything that is due in between."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn

from mmjobs.checkpoint.save import CheckpointWriter
from mmjobs.checkpoint.train_state import TrainState
from mmjobs.metrics import sample_images
from mmjobs.metrics.curves import Curves, as_curves
from mmjobs.metrics.profiler import Profiler
from mmjobs.metrics.throughput import Throughput
from mmjobs.rank.boundary import Boundary, Interrupted, RequeueRequested
from mmjobs.rank.context import Context
from mmjobs.rank.disk import DiskFull
from mmjobs.rank.watchdog import Phase
from mmjobs.train.evaluate import Evaluation
from mmjobs.train.learner import Learner, StepResult
from mmjobs.train.nonfinite import NonFiniteGuard, NotFinite
from mmjobs.train.source import Source

WORTH_SAYING = 0.1
"""The share of the time that the training may wait for data before the log says so."""


@dataclass
class Services:
    """What goes on around the steps."""

    checkpoints: CheckpointWriter
    evaluation: Evaluation
    boundary: Boundary
    curves: Curves
    throughput: Throughput
    guard: NonFiniteGuard
    profiler: Profiler


@dataclass
class Trainer:
    """One attempt at a run, on one rank."""

    context: Context
    source: Source
    learner: Learner
    services: Services
    state: TrainState
    steps: int
    started: bool = False
    """Whether this attempt has done a step."""

    @property
    def end(self) -> int:
        """The last step of this submission: a recipe may stop before its schedule ends, or when nothing gets better."""
        stop = self.context.recipe.stop
        early = stop is not None and self.state.not_better >= stop.patience
        return min(self.state.step, self._planned_end) if early else self._planned_end

    @property
    def _planned_end(self) -> int:
        return min(self.steps, self.context.recipe.stop_at or self.steps)

    def run(self) -> dict[str, Any]:
        """Train to the last step; raises `RequeueRequested` when there is a reason to go on later."""
        checkpoints, boundary, guard = self.services.checkpoints, self.services.boundary, self.services.guard
        if self.state.step == self.end < self._planned_end:
            self._say_early()
        while True:
            last = self.state.step >= self.end
            due = boundary.due(self.state.step, last, checkpoints.writing, guard.failed)
            checkpoints.advance(due.writing)
            if due.failed:
                self._finish_saving()
                guard.fail(self.state.step)
            if due.stop:
                self._stop(due.stop)
            improved = due.evaluate and self._evaluate() and self.state.step > 0  # nothing is learnt before step 1
            if due.save or improved:
                self._save()
            elif self.started and not last and checkpoints.is_due_in_memory(self.state.step):
                self._save_in_memory()
            if not last and self.state.step >= self.end:
                continue  # this evaluation was the last one: what is due at the end comes now
            if last:
                self._finish_saving()
                self.services.profiler.close()
                self.services.curves.close(done=True)
                return {"step": self.state.step, "metrics": self.state.metrics}
            try:
                self._step()
            except NotFinite:  # on all ranks: there is time for the checkpoint that is being written
                self._finish_saving()
                raise
            except Interrupted as reason:
                self._stop(str(reason))

    def _step(self) -> None:
        """One optimiser step over one global batch."""
        number = self.state.step + 1
        self.context.position.step = number
        self.context.ranks.watch.enter(Phase.STEP)
        with self.services.profiler.step(number):
            batches = self.source.next_step(self._between_batches)
            result = self.learner.step(batches, self.state.step)
        self.state.step = number
        self.services.guard.judge(self.state, batches, result)
        seconds = self.services.throughput.step(batches)
        self.services.boundary.step_seconds = seconds
        self.context.ranks.watch.stepped(seconds)
        if not self.started:
            self.started = True
            self.context.events.write("started_up", step=number, phases=self.context.ranks.watch.startup.seconds)
        if number % self.context.recipe.log.every == 0 or number in (1, self.end):
            self._log(result)

    def _log(self, result: StepResult) -> None:
        """Reduce the metrics over the ranks and write them down; all ranks call it together."""
        step, means, rates = self.state.step, result.metrics(), self.services.throughput.rates()
        numbers = {
            **self.source.metrics(),
            **means,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            **rates.as_fields(),
        }
        numbers |= {"left_out": self.state.left_out} if self.state.left_out else {}
        self.context.events.write("step", step=step, steps=self.steps, **numbers)
        self.services.curves.scalars(as_curves(numbers), step)
        shown = [f"step {step:>{len(str(self.steps))}}/{self.steps}", f"loss {means['loss']:.4g}"]
        shown += [f"accuracy {100 * means['accuracy']:.1f} %"] if "accuracy" in means else []
        shown += [f"reward {numbers['reward']:.3f}"] if "reward" in numbers else []
        shown += [str(rates), f"{rates.left(self.steps - step)} left"]
        shown += [f"waits for data {wait:.0%}"] if (wait := numbers.get("data_wait", 0.0)) > WORTH_SAYING else []
        self.context.events.log("  ".join(shown))

    def _evaluate(self) -> bool:
        """Measure the held-out examples; whether they are better than ever before, where the recipe keeps the best."""
        step, evaluation, curves = self.state.step, self.services.evaluation, self.services.curves
        if not len(evaluation):
            self.services.boundary.evaluating.done(step)
            return False
        self.context.ranks.watch.enter(Phase.EVALUATE)
        try:
            metrics = evaluation.measure(self._between_batches)
        except Interrupted as reason:
            self._stop(str(reason))
        self.state.evaluated, self.state.metrics = step, metrics
        samples = evaluation.samples()
        images = sample_images.save(self.context.paths.samples, samples) if self.context.ranks.first else []
        texts = [
            {"question": one.question, "truth": one.truth, "answer": one.answer, "images": shown}
            for one, shown in zip(samples, images, strict=False)
        ]
        self.context.events.write("evaluated", step=step, metrics=metrics, samples=texts)
        curves.scalars(metrics, step)
        curves.samples(samples, step)
        curves.flush()
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.context.events.log(f"evaluated  step {step}  {shown}")
        self.services.boundary.evaluating.done(step)
        self.services.throughput.pause()
        self._judge_progress(metrics)
        return self._improved(metrics)

    def _judge_progress(self, metrics: dict[str, float]) -> None:
        """Count the evaluations that bring nothing better, where the recipe stops early."""
        stop, state = self.context.recipe.stop, self.state
        if stop is None or stop.metric not in metrics:
            return
        value = metrics[stop.metric]
        better = stop.is_better(value, state.stop_best)
        end = self.end
        state.stop_best, state.not_better = (value, 0) if better else (state.stop_best, state.not_better + 1)
        if state.not_better >= stop.patience and state.step < end:
            self._say_early()

    def _say_early(self) -> None:
        stop, state, events = self.context.recipe.stop, self.state, self.context.events
        if stop is not None:
            facts = {"metric": stop.metric, "best": state.stop_best, "evaluations": state.not_better}
            events.write("stopped_early", step=state.step, **facts)
            events.log(f"stops early at step {state.step}: {stop.metric} is no better than before")

    def _improved(self, metrics: dict[str, float]) -> bool:
        settings = self.context.recipe.checkpoint
        value, best = metrics.get(settings.best or "", math.nan), self.state.best
        if not math.isfinite(value):
            return False
        better = best is None or (value > best if settings.best_is == "highest" else value < best)
        self.state.best = value if better else best
        return better

    def _between_batches(self) -> None:
        """Evaluations and rollouts take long: a signal is noticed, and a checkpoint goes on, before each batch."""
        checkpoints = self.services.checkpoints
        checkpoints.advance(self.services.boundary.check(checkpoints.writing))

    def _save(self, wait: bool = False) -> bool:
        """False when the disk is full, and the recipe lets the run go on without this checkpoint."""
        step = self.state.step
        if self.services.boundary.saving.done_at(step):
            return True
        self.context.ranks.watch.enter(Phase.SAVE)
        self._complete_state()
        saved = self.services.checkpoints.save(self.state, wait or step >= self.end)
        if not saved and step >= self.end:
            raise DiskFull(f"the disk is full, and step {step} is the result of the run; make room and resume it")
        self.services.boundary.saving.done(step)
        self.services.throughput.pause()
        return saved

    def _save_in_memory(self) -> None:
        self.context.ranks.watch.enter(Phase.SAVE)
        self._complete_state()
        self.services.checkpoints.save_in_memory(self.state)
        self.services.throughput.pause()

    def _complete_state(self) -> None:
        """What a checkpoint needs of the others."""
        self.services.guard.check(self.state, self.learner)
        self.services.curves.flush()  # first: what a checkpoint has behind it is not done again
        self.state.source, self.state.learner = self.source.state(), self.learner.state()

    def _finish_saving(self) -> None:
        """Before the end of the attempt."""
        self.context.ranks.watch.enter(Phase.SAVE)
        self.services.checkpoints.close()

    def _stop(self, reason: str) -> NoReturn:
        """Save what was done since the last checkpoint, and leave."""
        step, events = self.state.step, self.context.events
        events.write("signal", name=reason, step=step)
        events.log(f"{reason}: saving step {step} to go on later")
        if step and not self._save(wait=True):  # whoever asks to go on must have saved
            kept = self.context.paths.checkpoints
            raise DiskFull(f"{reason}: the disk is full, and step {step} is lost; make room in {kept}")
        self._finish_saving()
        self.services.profiler.close()
        self.services.curves.close(done=False)
        raise RequeueRequested(reason)
