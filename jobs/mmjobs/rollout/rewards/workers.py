"""The workers of one reward function: they score samples side by side, and are killed and replaced where they fail."""

from __future__ import annotations

import selectors
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict

from mmjobs.rollout.rewards.process import WorkerProcess
from mmjobs.rollout.rewards.score import Sample, Score
from mmlaunch.errors import BadInput
from mmlaunch.recipe.reward_functions import CONTEXT
from mmlaunch.recipe.rewards import RewardSource
from mmlaunch.run.paths import RunPaths

LOADING = 120.0
"""Seconds for a worker to load its function."""
MEMORY = 16 << 30
"""Bytes of memory that a worker may use."""
_LOOK = 0.5
"""Seconds between two looks at a worker whose pipe says nothing."""
_STARTS = 3
"""How often in a row the workers may fail to start, once they have started."""


class WorkersFailed(RuntimeError):
    """Workers of a reward function that has been loaded before do not start any more."""


class RewardWorkers:
    """Processes that score answers with one function. Close it, or use it in a `with`.

    Use it from one thread that lasts: the kernel ends a worker with the thread that has started it.
    """

    def __init__(self, source: RewardSource, count: int, run: RunPaths, memory: int = MEMORY) -> None:
        """`source` names the function; `run` holds the copy of its file or package; `count` answers are scored at a
        time."""
        self._name, self._deadline, self._count = str(source.function), float(source.deadline), count
        own = source.plugin
        file = str(run.plugin_file(own.file)) if own is not None and own.file else None
        self._setup = {
            "function": self._name, "file": file, "packages": str(run.plugin_files), "options": source.keywords,
            "context": CONTEXT, "memory": memory,
        }  # fmt: skip
        self._workers: list[WorkerProcess] = []
        self._loaded, self._failed_starts = False, 0

    def check(self) -> None:
        """Start the workers; raises `BadInput` if the function cannot be loaded, or not be called as it has to be."""
        try:
            self._start()
            while not all(worker.ready for worker in self._workers):
                self._wait()
                self._look_at_others()
                self._start()
        except BaseException:
            self.close()
            raise

    def score(self, samples: Sequence[Sample], moved: Callable[[], None] = lambda: None) -> list[Score]:
        """The scores in the order of the samples; `moved` is called for each that arrives.

        A sample whose function fails has a score without a value. No other one is touched by that.
        """
        scores: dict[int, Score] = {}
        waiting = deque(range(len(samples)))
        try:
            while len(scores) < len(samples):
                self._start()
                self._hand_out(samples, waiting)
                self._wait()
                for worker in [worker for worker in self._workers if worker.sample is not None]:
                    index = worker.sample
                    if index is not None and (score := self._receive(worker, samples[index])) is not None:
                        scores[index] = score
                        moved()
                self._look_at_others()
        finally:
            for worker in [worker for worker in self._workers if worker.sample is not None]:
                self._drop(worker)  # interrupted: what it would still answer belongs to no later call
        return [scores[index] for index in range(len(samples))]

    def close(self) -> None:
        """Kill all workers."""
        while self._workers:
            self._drop(self._workers[0])

    def __enter__(self) -> RewardWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        """Start as many workers as are missing; they load beside those that work."""
        while len(self._workers) < self._count:
            worker = WorkerProcess(self._setup)
            worker.until = time.monotonic() + LOADING
            self._workers.append(worker)

    def _hand_out(self, samples: Sequence[Sample], waiting: deque[int]) -> None:
        for worker in self._workers:
            if waiting and worker.ready and worker.sample is None:
                worker.sample = waiting.popleft()
                worker.until = time.monotonic() + self._deadline
                worker.send({"number": worker.sample, **asdict(samples[worker.sample])})

    def _wait(self) -> None:
        """Wait until a worker says something or is out of time."""
        now = time.monotonic()
        timed = [worker.until - now for worker in self._workers if worker.sample is not None or not worker.ready]
        with selectors.PollSelector() as selector:
            for worker in self._workers:
                selector.register(worker.reads, selectors.EVENT_READ)
                if worker.writes is not None:
                    selector.register(worker.writes, selectors.EVENT_WRITE)
            selector.select(max(0.0, min([_LOOK, *timed])))
        for worker in self._workers:
            worker.flush()

    def _receive(self, worker: WorkerProcess, sample: Sample) -> Score | None:
        """The score of the sample that a worker has; None: not yet."""
        messages, ended = worker.receive()
        for message in messages:
            if message.get("number") == worker.sample:
                worker.sample = None
                detail = f"{sample.origin}: {message['detail']}" if message["detail"] else ""
                return Score(message["value"], message["kind"], detail, message.get("extracted"))
        if ended:
            return Score(None, "error", f"{sample.origin}: {self._drop(worker, ended=True)}")
        if time.monotonic() >= worker.until:
            self._drop(worker)
            return Score(None, "timeout", f"{sample.origin}: no score within {self._deadline:g} s")
        return None

    def _look_at_others(self) -> None:
        """The workers that have no sample: some are loading, and one may have ended."""
        for worker in [worker for worker in self._workers if worker.sample is None]:
            messages, ended = worker.receive()
            problem = next((message["problem"] for message in messages if "problem" in message), None)
            if any("ready" in message for message in messages):
                worker.ready, self._loaded, self._failed_starts = True, True, 0
            if problem is not None:
                self._drop(worker)
                self._not_started(problem)
            elif ended:
                how = self._drop(worker, ended=True)
                if not worker.ready:
                    self._not_started(f"{how} while it was loaded")
            elif not worker.ready and time.monotonic() >= worker.until:
                self._drop(worker)
                self._not_started(f"it did not load within {LOADING:g} s")

    def _not_started(self, reason: str) -> None:
        """A function that was never loaded is wrong; one that was may be loaded the next time."""
        self._failed_starts += 1
        text = f"the reward function {self._name}: {reason}"
        if not self._loaded:
            raise BadInput(text)
        if self._failed_starts >= _STARTS:
            raise WorkersFailed(f"{text}; {_STARTS} workers in a row did not start")

    def _drop(self, worker: WorkerProcess, ended: bool = False) -> str:
        """Kill a worker, and say how it had ended where it has; `_start` replaces it."""
        if worker in self._workers:
            self._workers.remove(worker)
        return worker.end(ended)
