"""Sources: where the micro-batches of each step come from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from mmjobs.data.batch import Batch
from mmjobs.data.fetch_ahead import FetchAhead, StreamedFiles
from mmjobs.data.loader import batches
from mmjobs.data.readers.rows import is_streamed
from mmjobs.data.sampler import in_order
from mmjobs.data.shuffle import ShardOrder
from mmjobs.rank.context import Context
from mmjobs.train import skipped_rows
from mmjobs.train.datasets import Datasets


class Source(Protocol):
    """Yields the micro-batches of this rank, step by step; the state says where it goes on."""

    def next_step(self, check: Callable[[], None]) -> Sequence[Batch]:
        """The micro-batches of the next step. What takes long calls `check` on all ranks together, now and then: it
        raises `Interrupted` when the attempt has to end."""

    def metrics(self) -> dict[str, float]:
        """What it has measured by itself; shown with the metrics of a step."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; equal on all ranks, and JSON can hold it."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where that state was taken; called once, before the first step."""


class DatasetSource:
    """The training dataset in the global order, which depends on the seed alone."""

    def __init__(self, context: Context, datasets: Datasets, steps: int) -> None:
        self._context, self._training = context, datasets.training
        self._micro_batches = datasets.micro_batches
        self._examples, self._total = context.recipe.batch.examples, steps * context.recipe.batch.examples
        self._cursor = 0
        self._batches: Iterator[Batch] | None = None
        self._fetch_ahead: FetchAhead | None = None
        self._waited, self._since = 0.0, time.monotonic()

    def metrics(self) -> dict[str, float]:
        """The share of the time, since the last log line, in which the training waited for batches."""
        now = time.monotonic()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return {"data_wait": round(share, 4)}

    def next_step(self, check: Callable[[], None]) -> Sequence[Batch]:
        """Rows whose images turn out to be damaged are listed in the run directory, by each rank its own."""
        if self._batches is None:
            self._batches, self._fetch_ahead = self._load(), self._start_fetching()
        if self._fetch_ahead is not None:
            self._fetch_ahead.at(self._cursor)
        began = time.monotonic()
        step = [next(self._batches) for _ in self._micro_batches(self._cursor)]
        self._waited += time.monotonic() - began
        skipped_rows.add(self._context.paths, [row for batch in step for row in batch.skipped])
        self._cursor += self._examples
        return step

    def _load(self) -> Iterator[Batch]:
        steps = (self._total - self._cursor) // self._examples
        order = in_order(self._micro_batches, self._cursor, steps, self._examples)
        return batches(self._training, order, self._context.recipe.data.workers)

    def _start_fetching(self) -> FetchAhead | None:
        """One for each node, where files are streamed."""
        mixture, order = self._training.mixture, self._training.place_of
        if not isinstance(order, ShardOrder) or os.environ.get("LOCAL_RANK", "0") != "0":
            return None
        return FetchAhead(StreamedFiles.of(mixture, order)) if any(map(is_streamed, mixture.survey.parts)) else None

    def state(self) -> dict[str, Any]:
        """The global index of the next example, and a digest of the data that it counts in."""
        return {"cursor": self._cursor, "data": self._digest}

    @property
    def _digest(self) -> str:
        data = self._context.recipe.data
        order = f" in windows of {data.shuffle_window}" if data.shuffle == "shards" else ""
        return self._training.mixture.digest + order

    def restore(self, state: dict[str, Any]) -> None:
        self._cursor = int(state.get("cursor", 0))
        if state.get("data") not in (None, "", self._digest):
            what = "the data are not those that the run began with: other rows, or another order"
            self._context.events.warn(what, step=self._cursor // self._examples)
