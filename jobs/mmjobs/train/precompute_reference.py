"""Precomputing the reference: the log-probabilities of the model as it begins, for every answer, once.

They are kept in the run directory under a digest of the weights. What runs beside this one have computed with the same
weights is used; what is missing is computed, in pieces that survive the end of an attempt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mmjobs.data.batch import Batch
from mmjobs.data.loader import Examples, batches
from mmjobs.data.reference_store import ReferenceStore, write
from mmjobs.engine.engine import Engine
from mmjobs.objectives.adapter_off import adapter_off
from mmjobs.objectives.forward import answer_token_log_probs
from mmjobs.rank.boundary import Boundary, Interrupted, Interval, RequeueRequested
from mmjobs.rank.context import Context
from mmjobs.rank.shared_files import visible
from mmjobs.rank.watchdog import Phase
from mmjobs.train import pins
from mmjobs.train.datasets import Datasets, batches_of_rank
from mmjobs.train.reference_cache import key_of, scope_of, take_over
from mmlaunch.errors import BadInput
from mmlaunch.run.files import publish

FLUSH_SECONDS = 20.0
"""Seconds between two pieces."""
REPORT_SECONDS = 5.0
"""Seconds between two lines of progress."""


def precompute_reference(context: Context, engine: Engine, datasets: Datasets, examples: int) -> ReferenceStore:
    """The reference's log-probabilities of the first `examples` of the global order, and of the evaluation data.

    Raises `RequeueRequested` when the attempt has to end before.
    """
    context.ranks.watch.enter(Phase.EVALUATE)
    context.ranks.watch.doing("computes the reference")
    try:
        return _Precomputation(context, engine).run(datasets, examples)
    except Interrupted as reason:
        context.events.write("signal", name=str(reason), step=0)
        raise RequeueRequested(str(reason)) from None


class _Precomputation:
    """The phase before the first step, on one rank."""

    def __init__(self, context: Context, engine: Engine) -> None:
        self._context, self._engine = context, engine
        self._ranks, self._events = context.ranks, context.events
        self._boundary = Boundary(context.ranks, context.stop, Interval([], None), Interval([], None))
        lora = context.recipe.model.lora
        # DoRA divides by a length and multiplies by it again: adapters that add nothing yet change the last digits.
        self._dora = lora is not None and lora.dora
        self._written: list[str] = []

    def _key(self, examples: Examples) -> str:
        """The key of the reference model: the model as it began, in every attempt."""
        context = self._context
        if lost := pins.lost_source(context):
            key = self._ranks.from_first(pins.pinned(context, pins.REFERENCE) if self._ranks.first else None)
            if key is None:
                raise BadInput(f"{lost}, and with it the reference; put it back")
            return str(key)
        key = key_of(self._engine, examples, self._ranks, self._dora)
        pins.pin(context, pins.REFERENCE, key)
        return key

    def run(self, datasets: Datasets, examples: int) -> ReferenceStore:
        sets = [datasets.training, datasets.evaluation]
        places = [_visited(datasets.training, examples), _distinct(datasets.evaluation)]
        folder = self._context.paths.reference / self._key(sets[0])
        complete_marker = folder / f"complete-{scope_of(sets, places)}.json"
        if self._ranks.first:
            folder.mkdir(parents=True, exist_ok=True)
            take_over(self._context.paths, folder)
        complete, names = self._ranks.from_first(_pieces(folder, complete_marker) if self._ranks.first else None)
        store = ReferenceStore()
        damaged = store.take(visible(folder / name) for name in names)
        for path, reason in damaged.items():
            self._events.warn(f"reference: not believed, and measured again: {path}: {reason}")
        if self._ranks.any(not complete or bool(damaged)):
            for path in damaged if self._ranks.first else ():  # all ranks have looked at it
                path.unlink(missing_ok=True)
            for dataset, some in zip(sets, places, strict=True):
                self._compute(replace(dataset, keyed=True, place_of=int), some, store, folder)
            written = [name for of_rank in self._ranks.gather(self._written) for name in of_rank]
            used = set(written).union(*self._ranks.gather(store.used))
            store.take(visible(folder / name) for name in written if name not in self._written)
            if self._ranks.first:
                publish(complete_marker, json.dumps({"examples": len(store), "pieces": sorted(used)}) + "\n")
        self._events.log(f"reference   knows {len(store)} examples")
        return store

    def _compute(self, examples: Examples, places: Sequence[int], store: ReferenceStore, folder: Path) -> None:
        """Compute what the store lacks of these places, and write it in pieces."""
        recipe = self._context.recipe
        order = batches_of_rank(examples, places, recipe.batch, self._ranks)
        fresh: dict[bytes, torch.Tensor] = {}
        begun = flushed = reported = time.monotonic()
        finished = new = 0
        for batch in batches(examples, order, recipe.data.workers):
            try:
                self._boundary.check(0)
            except Interrupted:
                self._flush(folder, fresh)
                raise
            looked_at, unknown = self._ranks.sums(
                len(batch) + len(batch.skipped), sum(key not in store for key in batch.keys)
            )
            if unknown:  # on any rank: then all compute, or some would wait
                fresh |= {key: values for key, values in self._log_probs(batch).items() if key not in store}
            finished, new = finished + int(looked_at), new + int(unknown)
            now = time.monotonic()
            if fresh and now - flushed > FLUSH_SECONDS:
                store.add(fresh)
                self._flush(folder, fresh)
                fresh, flushed = {}, now
            if now - reported > REPORT_SECONDS or finished == len(places):
                reported = now
                self._report(finished, len(places), new, now - begun)
        store.add(fresh)
        self._flush(folder, fresh)

    def _log_probs(self, batch: Batch) -> dict[bytes, torch.Tensor]:
        """The log-probabilities of each example of a batch, by its key."""
        read = answer_token_log_probs if self._dora else adapter_off
        values = self._engine.compute(batch, read).cpu()
        return dict(zip(batch.keys, _by_example(values, batch), strict=True))

    def _report(self, finished: int, total: int, new: int, seconds: float) -> None:
        rate = finished / max(1e-9, seconds)
        left = f"{round((total - finished) / max(rate, 1e-9))}s left"
        self._events.log(f"reference   {finished}/{total} examples  {rate:.1f} examples/s  {left}")
        self._events.write("reference", done=finished, total=total, new=new)

    def _flush(self, folder: Path, fresh: dict[bytes, torch.Tensor]) -> None:
        if fresh:
            name = f"{self._events.attempt}-{self._ranks.rank}-{time.time_ns()}.safetensors"
            write(folder / name, fresh)
            self._written.append(name)


def _pieces(folder: Path, complete_marker: Path) -> tuple[bool, list[str]]:
    """Whether all examples of this run are known, and the files to read: then those that some of them are in."""
    every = sorted(path.name for path in folder.glob("*.safetensors"))
    try:
        needed = json.loads(complete_marker.read_text(encoding="utf-8")).get("pieces", every)
    except (OSError, ValueError, AttributeError):
        return False, every
    return (True, needed) if set(needed) <= set(every) else (False, every)


def _by_example(values: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
    """The values of each example of a batch; its answers stand one behind the other."""
    owner = batch.answers.example[batch.in_loss(batch.owners)]  # [U]
    counts = owner.bincount(minlength=len(batch)).tolist()
    return [part.clone() for part in torch.split(values, counts)] if len(batch) else []


def _visited(examples: Examples, count: int) -> list[int]:
    """The places of the mixture that the first `count` examples of the global order stand at."""
    if count >= len(examples.mixture):
        return _distinct(examples)
    return sorted({examples.place_of(index) for index in range(count)})


def _distinct(examples: Examples) -> list[int]:
    """Places where each row stands once; all places, where an answer of the next place is computed beside each."""
    if examples.processor.requirements.mismatched:
        return list(range(len(examples.mixture)))
    first: dict[int, int] = {}
    for place, row in enumerate(examples.mixture.places.tolist()):
        first.setdefault(row, place)
    return list(first.values())
