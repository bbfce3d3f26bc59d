"""A shard: its rows in windows and batches, dealt to the ranks, and what is committed of them.

A window is so many rows of the input, one after the other; its rows are sorted by length and cut into batches. Both
depend on the input alone, so that what is computed does not depend on the number of shards, of ranks, or of restarts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mmjobs.inference.inputs import Failed, InputRow, InputRows, check_unchanged
from mmjobs.inference.made import keep
from mmjobs.inference.records import Record, RecordFile
from mmjobs.inference.work import Work
from mmjobs.rank.boundary import Interrupted, RequeueRequested
from mmjobs.rank.context import Context
from mmjobs.rank.signals import name_of
from mmjobs.rank.watchdog import Phase
from mmjobs.train import pins
from mmlaunch.errors import BadInput, InputChanged, TooManyFailed
from mmlaunch.recipe.data import Source
from mmlaunch.recipe.inference import Inference
from mmlaunch.run import shards
from mmlaunch.run.shards import Definition

EVERY = 5.0
"""Seconds between two events that say how far a shard is."""
FIRST = 3
"""So many failed rows are named where there are too many."""


@dataclass(frozen=True)
class Batch:
    """Rows that are worked on together."""

    number: int
    """Over the whole task: the same whatever the shards."""
    rows: tuple[InputRow, ...]
    failed: tuple[tuple[InputRow, Failed], ...] = ()
    """Rows of its window that cannot be worked on; the first batch of a window carries them."""


class Shard:
    """One attempt at a shard."""

    def __init__(self, context: Context, work: Work, definition: Definition, inputs: InputRows) -> None:
        task = context.recipe.objective
        assert isinstance(task, Inference)
        self._context, self._ranks, self._work, self._task = context, context.ranks, work, task
        self._definition, self._inputs = definition, inputs
        self._first, self._stop = definition.ranges[shards.number_of(context.paths)]
        self._told, self._new = 0.0, 0

    def run(self) -> dict[str, Any]:
        """Work until every row has its record; raises `RequeueRequested` when another attempt has to go on."""
        first = self._ranks.first
        file = RecordFile(self._context.paths) if first else None
        done: set[int] = self._ranks.from_first(file.done if file else None)
        self._ranks.watch.enter(Phase.ROLLOUT)
        self._ranks.watch.doing(f"{self._task.method}: works on rows", "batches")
        began = time.monotonic()
        try:
            for wave in self._waves(done):
                self._check()
                started = time.monotonic()
                own = wave[self._ranks.rank] if self._ranks.rank < len(wave) else None
                made = {} if own is None else {own.number: self._records(own)}
                if own is None:
                    self._work.records((), self._check)
                gathered = self._ranks.gather(made)
                if file is not None:
                    self._context.events.check_owner()
                    file.append({n: rows for of_rank in gathered for n, rows in of_rank.items()}, _since(started))
                    self._new += sum(len(rows) for of_rank in gathered for rows in of_rank.values())
                    self._tell(file, began)
                self._check_failed(file)
        except Interrupted as reason:
            if file is not None:
                self._tell(file, began, now=True)
            self._context.events.write("signal", name=str(reason), step=file.rows if file else 0)
            raise RequeueRequested(str(reason)) from None
        facts = {**self._work.facts(), "content": pins.contents(self._context), "seconds": round(_since(began), 1)}
        if file is not None:
            if file.rows != self._stop - self._first:
                raise RuntimeError(f"{file.rows} records of {self._stop - self._first} rows were committed")
            file.close(facts)
            self._tell(file, began, now=True)
        return {"rows": self._stop - self._first}

    def _waves(self, done: set[int]) -> Iterator[list[Batch]]:
        """The batches that are not committed, as many at a time as there are ranks."""
        wave: list[Batch] = []
        for batch in self._batches(done):
            wave.append(batch)
            if len(wave) == self._ranks.world:
                yield wave
                wave = []
        if wave:
            yield wave

    def _batches(self, done: set[int]) -> Iterator[Batch]:
        size, window = self._definition.batch, self._definition.window
        for begin in range(self._first, self._stop, window):
            places = range(begin, min(begin + window, self._stop))
            numbers = range(begin // size, begin // size + -(-len(places) // size))
            if done.issuperset(numbers):
                continue
            yield from (batch for batch in self._window(places, numbers) if batch.number not in done)

    def _window(self, places: range, numbers: range) -> Iterator[Batch]:
        """A window's rows by length, in batches; a number may have no rows, where rows failed."""
        lengths: list[tuple[int, int]] = []
        rows: dict[int, InputRow] = {}
        broken: list[tuple[InputRow, Failed]] = []
        for place in places:
            row: InputRow = self._inputs[place]
            try:
                if row.failed is not None:
                    raise row.failed
                lengths.append((self._work.length(row), place))
                rows[place] = row
            except Failed as reason:
                broken.append((row, reason))
        order = [place for _, place in sorted(lengths)]
        size = self._definition.batch
        for number, begin in zip(numbers, range(0, len(places), size), strict=True):
            chosen = tuple(rows[place] for place in order[begin : begin + size])
            yield Batch(number, chosen, tuple(broken) if number == numbers[0] else ())

    def _records(self, batch: Batch) -> list[Record]:
        self._context.position.samples = tuple(row.example.origin for row in batch.rows if row.example)
        made = self._work.records(batch.rows, self._check)
        for row in batch.rows:
            if row.example is not None:
                keep(row.example, shards.images(self._context.paths))
        self._context.position.samples = ()
        return [*made, *(self._work.failed(row, reason) for row, reason in batch.failed)]

    def _check(self) -> None:
        """Called by all ranks together."""
        stop = self._context.stop
        signal, late = self._ranks.highest(stop.signal, stop.too_late_for(0.0))
        if signal or late:
            raise Interrupted(name_of(int(signal)) if signal else "deadline")
        self._ranks.watch.moved()

    def _tell(self, file: RecordFile, began: float, now: bool = False) -> None:
        """An event every few seconds."""
        if not now and time.monotonic() - self._told < EVERY:
            return
        self._told = time.monotonic()
        rate = round(self._new / max(_since(began), 1e-3), 3)
        counts = {"done": file.rows, "total": self._stop - self._first, "new": self._new}
        self._context.events.write("records", **counts, rate=rate, failed=dict(file.failed))
        self._context.events.log(f"{file.rows} of {self._stop - self._first} rows, {rate:.1f} rows/s")

    def _check_failed(self, file: RecordFile | None) -> None:
        """End a shard most of whose rows fail, more than the whole task may: the input or the recipe is wrong. Fewer
        cost nothing but themselves: whether they are too many is said when all rows have their records."""
        wrong, failed = None, file.failed.total() if file is not None else 0
        too_many, rows = failed > self._task.max_failed * self._definition.rows, self._stop - self._first
        window = self._definition.window  # its first batch has brought all rows of it that cannot be worked on
        if (
            file is not None
            and too_many
            and file.rows < rows
            and 2 * failed > min(rows, -(-file.rows // window) * window)
        ):
            reasons = ", ".join(f"{count} x {reason}" for reason, count in file.failed.items())
            allowed = f"objective.max_failed ({self._task.max_failed:.1%}) allows: {reasons}"
            what = f"most rows have failed, and more than {allowed}"
            wrong = f"{what}: {'; '.join(_details(self._context))}"
        if wrong := self._ranks.from_first(wrong):
            raise TooManyFailed(wrong)


def _details(context: Context) -> Iterator[str]:
    """The first failed rows of a shard."""
    found = 0
    with suppress(OSError), shards.records(context.paths).open("rb") as lines:
        for text in lines:
            error = json.loads(text).get("error")
            if error and (found := found + 1) <= FIRST:
                yield str(error["detail"])


def _since(began: float) -> float:
    return time.monotonic() - began


def open_rows(context: Context) -> tuple[Definition, InputRows]:
    """The definition of the task that a shard is part of, and its rows as they were at submission."""
    task = shards.task_of(context.paths)
    if task is None:
        raise BadInput(f"{context.paths.root} is no shard of a task; it was made by another version")
    definition, sources = shards.read(task), context.recipe.data.inputs
    wrong = None
    if context.ranks.first:
        try:
            check_unchanged(definition.inputs, sources)
            other = context.recipe.objective.compared_with
            check_unchanged(definition.against, [Source(path=other, format="predictions")] if other else [])
        except (BadInput, OSError) as error:
            wrong = str(error)
    if wrong := context.ranks.from_first(wrong):
        raise InputChanged(wrong)
    rows = InputRows(sources)
    if len(rows) != definition.rows:
        raise BadInput(f"data.input: {len(rows)} rows, and the task was split when there were {definition.rows}")
    return definition, rows
