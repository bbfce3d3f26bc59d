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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mmjobs.data.batch import Batch
from mmjobs.data.loader import Examples, batches
from mmjobs.data.reference_store import ReferenceStore, write
from mmjobs.engine.engine import Engine
from mmjobs.model import sharded
from mmjobs.model.parts import ADAPTER
from mmjobs.objectives.adapter_off import adapter_off
from mmjobs.objectives.forward import answer_token_log_probs
from mmjobs.rank.boundary import Boundary, Interrupted, Interval, RequeueRequested
from mmjobs.rank.events import EventWriter
from mmjobs.rank.ranks import Ranks
from mmjobs.rank.signals import StopRequest
from mmjobs.rank.watchdog import Phase
from mmjobs.train.datasets import Datasets
from mmjobs.train.evaluate import turns
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.objective import Preference
from mmlaunch.run.files import publish
from mmlaunch.run.paths import RunPaths

_FLUSH = 20.0
"""Seconds between two pieces."""
_TELL = 5.0
_PATIENCE = 90.0
"""Seconds that a file system may take to show a file to all nodes."""


@dataclass
class Precomputing:
    """The phase before the first step."""

    paths: RunPaths
    ranks: Ranks
    events: EventWriter
    engine: Engine
    recipe: Recipe

    def run(self, stuff: Datasets, stop: StopRequest, visits: int) -> ReferenceStore:
        """What the reference says of all that so many visits will see, and of what is held out.

        Raises `RequeueRequested` when the attempt has to end before.
        """
        self._agenda = Boundary(self.ranks, stop, Interval([], None), Interval([], None))
        self._written: list[str] = []
        self.ranks.watch.enter(Phase.EVALUATE)
        try:
            return self._of([stuff.training, stuff.held], [_visited(stuff.training, visits), _places(stuff.held)])
        except Interrupted as reason:
            self.events.event("signal", name=str(reason), step=0)
            raise RequeueRequested(str(reason)) from None

    def _of(self, sets: Sequence[Examples], places: Sequence[list[int]]) -> ReferenceStore:
        folder = self.paths.reference / self._key(sets[0])
        done = folder / f"complete-{_scope(sets, places)}.json"
        if self.ranks.first:
            folder.mkdir(parents=True, exist_ok=True)
            for other in _beside(self.paths, folder.name):
                _take_over(other, folder)
        pieces = sorted(path.name for path in folder.glob("*.safetensors"))
        complete, names = self.ranks.from_first((done.is_file(), pieces))
        store = ReferenceStore()
        doubts = store.take(_there(folder / name) for name in names)
        for path, reason in doubts.items():
            self.events.warn(f"reference: not believed, and measured again: {path}: {reason}")
        if self.ranks.any(not complete or bool(doubts)):
            for path in doubts if self.ranks.first else ():  # all have looked at it
                path.unlink(missing_ok=True)
            for examples, some in zip(sets, places, strict=True):
                self._measure(replace(examples, keyed=True, place_of=int), some, store, folder)
            written = [name for one in self.ranks.gather(self._written) for name in one]
            store.take(_there(folder / name) for name in written if name not in self._written)
            if self.ranks.first:
                publish(done, json.dumps({"examples": len(store)}) + "\n")
        self.events.say(f"reference   knows {len(store)} examples")
        return store

    def _measure(self, examples: Examples, places: Sequence[int], store: ReferenceStore, folder: Path) -> None:
        mine = turns(examples, places, self.recipe.batch, self.ranks)
        fresh: dict[bytes, torch.Tensor] = {}
        begun = flushed = told = time.monotonic()
        finished = new = 0
        for batch in batches(examples, mine, self.recipe.data.workers):
            try:
                self._agenda.check(0)
            except Interrupted:
                self._flush(folder, fresh)
                raise
            counts = self.ranks.sums(len(batch) + len(batch.skipped), sum(key not in store for key in batch.keys))
            if counts[1]:  # all of them, or some would wait
                said = self.engine.look_at(batch, answer_token_log_probs if self._rounds else adapter_off).cpu()
                found = dict(zip(batch.keys, _by_example(said, batch), strict=True))
                fresh |= {key: values for key, values in found.items() if key not in store}
            finished, new = finished + int(counts[0]), new + int(counts[1])
            now = time.monotonic()
            if fresh and now - flushed > _FLUSH:
                store.add(fresh)
                self._flush(folder, fresh)
                fresh, flushed = {}, now
            if now - told > _TELL or finished == len(places):
                told, rate = now, finished / max(1e-9, now - begun)
                left = f"{round((len(places) - finished) / max(rate, 1e-9))}s left"
                self.events.say(f"reference   {finished}/{len(places)} examples  {rate:.1f} examples/s  {left}")
                self.events.event("reference", done=finished, total=len(places), new=new)
        store.add(fresh)
        self._flush(folder, fresh)

    @property
    def _rounds(self) -> bool:
        """Whether adapters that add nothing yet are felt: DoRA divides by a length, and multiplies by it again."""
        lora = self.recipe.model.lora
        return lora is not None and lora.dora

    def _flush(self, folder: Path, fresh: dict[bytes, torch.Tensor]) -> None:
        if fresh:
            name = f"{self.events.attempt}-{self.ranks.rank}-{time.time_ns()}.safetensors"
            write(folder / name, fresh)
            self._written.append(name)

    def _key(self, examples: Examples) -> str:
        """The same for the same weights, computed with in the same way; adapters add nothing yet."""
        network: Any = self.engine.network
        mine = {}
        named = [(name, value) for name, value in network.named_parameters() if ADAPTER not in name]
        for number, (name, parameter) in enumerate(named):
            self.ranks.watch.moved()
            with sharded.whole([parameter]):
                if number % self.ranks.world == self.ranks.rank:
                    content = parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy()
                    mine[name.replace(".base_layer.", ".")] = hashlib.blake2b(content, digest_size=16).hexdigest()
        weights = {name: digest for one in self.ranks.gather(mine) for name, digest in one.items()}
        shape = _of_content(network.config.to_dict())
        pixels = examples.processor.pixels  # some hand on bytes, and normalise them in the network
        colours = [getattr(pixels, name, None) for name in ("mean", "spread")]
        arithmetic = [self.engine.layout["precision"], *(["dora"] if self._rounds else [])]
        said = json.dumps([weights, shape, arithmetic, colours], sort_keys=True, default=str)
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def _of_content(value: Any) -> Any:
    """A configuration without what is no part of it: where it was found, for one."""
    if not isinstance(value, dict):
        return value
    return {name: _of_content(own) for name, own in value.items() if not str(name).startswith("_")}


def measured_once(recipe: Recipe) -> bool:
    """Whether a recipe asks its reference before the first step, and never again."""
    objective = recipe.objective
    return isinstance(objective, Preference) and objective.refers and objective.reference == "precomputed"


def _scope(sets: Sequence[Examples], places: Sequence[list[int]]) -> str:
    """The same for the same examples, looked at in the same way."""
    said = [
        [one.mixture.digest, repr(one.processor.requirements), one.processor.longest, one.processor.overlong, one.seed,
         one.corruption_seed, [[part.augment, part.max_tiles] for part in one.mixture.survey.parts], len(some)]
        for one, some in zip(sets, places, strict=True)
    ]  # fmt: skip
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=8).hexdigest()


def _by_example(values: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
    """The values of each example of a batch; its answers stand one behind the other."""
    owner = batch.answers.example[batch.owners[batch.loss_mask]]  # [U]
    counts = owner.bincount(minlength=len(batch)).tolist()
    return [part.clone() for part in torch.split(values, counts)] if len(batch) else []


def _visited(examples: Examples, visits: int) -> list[int]:
    """The places of the first so many visits, where these do not see everything."""
    if visits >= len(examples.mixture):
        return _places(examples)
    return sorted({examples.place_of(index) for index in range(visits)})


def _places(examples: Examples) -> list[int]:
    """Each row once; with an answer of the next place beside it, each place."""
    if examples.processor.requirements.mismatched:
        return list(range(len(examples.mixture)))
    first: dict[int, int] = {}
    for place, row in enumerate(examples.mixture.places):
        first.setdefault(row, place)
    return list(first.values())


def _there(path: Path) -> Path:
    """A file that another rank has just written, as soon as this machine sees it too: NFS takes its time."""
    until = time.monotonic() + _PATIENCE
    while not path.exists() and time.monotonic() < until:
        os.scandir(path.parent).close()
        time.sleep(0.2)
    return path


def _beside(paths: RunPaths, key: str) -> list[Path]:
    """The same weights' folders in the runs beside this one."""
    found = paths.root.parent.glob(f"*/{paths.reference.name}/{key}")
    return sorted(folder for folder in found if folder.parent != paths.reference)


def _take_over(other: Path, folder: Path) -> None:
    """Link or copy what is not here yet: pieces only, for what is complete there need not be all of ours."""
    for path in other.glob("[!.]*.safetensors"):
        mine = folder / path.name
        if mine.exists():
            continue
        try:
            os.link(path, mine)
        except OSError:
            with suppress(OSError):
                shutil.copyfile(path, folder / f".{path.name}.writing")
                (folder / f".{path.name}.writing").replace(mine)
