"""The reference: what the model said before it learnt anything, measured once for every answer, and kept.

It lies in the run directory under the digest of the weights that said it. What another run beside this one has
measured with the same weights is taken over; what is missing is measured, in pieces that survive the end of an attempt.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mmjobs.data.batch import Batch
from mmjobs.data.loader import Examples, batches
from mmjobs.data.reference import Store, write
from mmjobs.model import sharded
from mmjobs.model.parts import ADAPTER
from mmjobs.objectives.reading import values_of
from mmjobs.train.agenda import Agenda, GivenUp, Interval, Saved
from mmjobs.train.engine import Engine
from mmjobs.train.evaluate import AT_A_TIME
from mmjobs.train.journal import Journal
from mmjobs.train.material import Material
from mmjobs.train.ranks import Ranks
from mmjobs.train.signals import Stop
from mmjobs.train.watchdog import Phase
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.batch import Batch as BatchSize
from mmlaunch.recipe.objective import Preference
from mmlaunch.run.files import publish
from mmlaunch.run.paths import RunPaths

_FLUSH = 20.0
"""Seconds between two pieces."""
_TELL = 5.0


@dataclass
class Precomputing:
    """The phase before the first step."""

    paths: RunPaths
    ranks: Ranks
    journal: Journal
    engine: Engine
    workers: int
    size: BatchSize

    def run(self, stuff: Material, stop: Stop) -> Store:
        """What the reference says of all examples; raises `Saved` when the attempt has to end before."""
        self._agenda = Agenda(self.ranks, stop, Interval([], None), Interval([], None))
        try:
            return self._of([replace(stuff.training, place_of=int), stuff.held])
        except GivenUp as reason:
            self.journal.event("signal", name=str(reason), step=0)
            raise Saved(str(reason)) from None

    def _of(self, sets: Sequence[Examples]) -> Store:
        self.ranks.watch.enter(Phase.EVALUATE)
        key = self._key()
        folder = self.paths.reference / key
        done = folder / f"complete-{_scope(sets)}.json"
        if self.ranks.first:
            folder.mkdir(parents=True, exist_ok=True)
            taken = sum(_take_over(other, folder) for other in _beside(self.paths, key))
            if taken:
                self.journal.say(f"reference   {taken} files of an earlier run with the same weights")
        complete = self.ranks.from_first(done.is_file() if self.ranks.first else None)
        store = Store()
        for doubt in store.take(folder):
            self.journal.warn(f"reference: not believed, and measured again: {doubt}")
            complete = False
        complete = not self.ranks.any(not complete)
        if complete:
            self.journal.say(f"reference   {len(store)} examples, measured before")
            return store
        for examples in sets:
            self._measure(replace(examples, keyed=True), store, folder)
        self.ranks.any(False)  # all have written
        if self.ranks.first:
            publish(done, json.dumps({"examples": len(store)}) + "\n")
        merged = Store()
        merged.take(folder)
        return merged

    def _measure(self, examples: Examples, store: Store, folder: Path) -> None:
        if self.size.tokens_per_gpu and examples.packed:
            chunks = _chunks(_places(examples), examples.tokens, self.size.tokens_per_gpu)
        else:
            chunks = _chunks(_places(examples), lambda place: 1, self.size.micro or AT_A_TIME)
        world, rank = self.ranks.world, self.ranks.rank
        turns = -(-len(chunks) // world)
        mine = [chunks[turn * world + rank] if turn * world + rank < len(chunks) else [] for turn in range(turns)]
        fresh: dict[bytes, torch.Tensor] = {}
        begun = flushed = told = time.monotonic()
        finished, total, before = 0, sum(len(chunk) for chunk in chunks), len(store)
        for turn, batch in enumerate(batches(examples, mine, self.workers)):
            try:
                self._agenda.check(0)
            except GivenUp:
                self._flush(folder, fresh)
                raise
            if self.ranks.any(any(store.get(key) is None for key in batch.keys)):  # all of them, or some would wait
                said = self.engine.look_at(batch, values_of).cpu()
                fresh |= zip(batch.keys, _by_example(said, batch), strict=True)
            finished = min(total, sum(len(chunk) for chunk in chunks[: (turn + 1) * world]))
            now = time.monotonic()
            if fresh and now - flushed > _FLUSH:
                store.add(fresh)
                self._flush(folder, fresh)
                fresh, flushed = {}, now
            if now - told > _TELL or finished == total:
                told, rate = now, finished / max(1e-9, now - begun)
                left = f"{round((total - finished) / max(rate, 1e-9))}s left"
                self.journal.say(f"reference   {finished}/{total} examples  {rate:.1f} examples/s  {left}")
                self.journal.event("reference", done=finished, total=total, new=len(store) + len(fresh) - before)
        store.add(fresh)
        self._flush(folder, fresh)

    def _flush(self, folder: Path, fresh: dict[bytes, torch.Tensor]) -> None:
        if fresh:
            write(folder / f"{self.journal.attempt}-{self.ranks.rank}-{time.time_ns()}.safetensors", fresh)

    def _key(self) -> str:
        """The same for the same weights, computed with in the same way; adapters add nothing yet."""
        network: Any = self.engine.network
        mine = {}
        named = [(name, value) for name, value in network.named_parameters() if ADAPTER not in name]
        for number, (name, parameter) in enumerate(named):
            self.ranks.watch.moved()
            with sharded.whole([parameter]):
                if number % self.ranks.world == self.ranks.rank:
                    content = parameter.detach().cpu().contiguous().view(torch.uint8).numpy()
                    mine[name.replace(".base_layer.", ".")] = hashlib.blake2b(content, digest_size=16).hexdigest()
        weights = {name: digest for one in self.ranks.gather(mine) for name, digest in one.items()}
        shape = {name: value for name, value in network.config.to_dict().items() if not name.startswith("_")}
        said = json.dumps([weights, shape, self.engine.layout["precision"]], sort_keys=True, default=str)
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def measured_once(recipe: Recipe) -> bool:
    """Whether a recipe asks its reference before the first step, and never again."""
    objective = recipe.objective
    return isinstance(objective, Preference) and objective.refers and objective.reference == "precomputed"


def _scope(sets: Sequence[Examples]) -> str:
    """The same for the same examples, looked at in the same way."""
    said = [
        [one.mixture.digest, repr(one.processor.wants), one.processor.longest, one.seed, one.spoils] for one in sets
    ]
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=8).hexdigest()


def _by_example(values: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
    """The values of each example of a batch; its answers stand one behind the other."""
    owner = batch.answers.example[batch.owners[batch.learnt]]  # [U]
    counts = owner.bincount(minlength=len(batch)).tolist()
    return [part.clone() for part in torch.split(values, counts)] if len(batch) else []


def _places(examples: Examples) -> list[int]:
    """Each row once; with an answer of the next place beside it, each place."""
    if examples.processor.wants.stranger:
        return list(range(len(examples.mixture)))
    first: dict[int, int] = {}
    for place, row in enumerate(examples.mixture.places):
        first.setdefault(row, place)
    return list(first.values())


def _chunks(places: Sequence[int], room: Callable[[int], int], budget: int) -> list[list[int]]:
    chunks: list[list[int]] = []
    left = 0
    for place in places:
        needed = room(place)
        if not chunks or needed > left:
            chunks.append([])
            left = budget
        chunks[-1].append(place)
        left -= needed
    return chunks


def _beside(paths: RunPaths, key: str) -> list[Path]:
    """The same weights' folders in the runs beside this one."""
    found = paths.root.parent.glob(f"*/{paths.reference.name}/{key}")
    return sorted(folder for folder in found if folder.parent != paths.reference)


def _take_over(other: Path, folder: Path) -> int:
    """Link or copy what is not here yet; what is half written there has another name."""
    taken = 0
    for path in [*other.glob("[!.]*.safetensors"), *other.glob("complete-*.json")]:
        mine = folder / path.name
        if mine.exists():
            continue
        try:
            os.link(path, mine)
        except OSError:
            with suppress(OSError):
                shutil.copyfile(path, folder / f".{path.name}.writing")
                (folder / f".{path.name}.writing").replace(mine)
        taken += mine.exists()
    return taken
