"""The loader: batches in a given order, prepared by worker processes when the recipe asks for some."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mmjobs.data.batch import Batch, collate
from mmjobs.data.encode import Encoded, ImageChange, Processor
from mmjobs.data.example import BadRow
from mmjobs.data.images.augment import crop, jpeg
from mmjobs.data.mixture import Mixture
from mmjobs.data.parent import FORK, end_with_parent
from mmjobs.data.reference_store import ReferenceStore
from mmjobs.data.transfer import Packing
from mmlaunch.errors import BadInput

_MOMENT = 1.0
"""Seconds until the end of a killed worker is known."""
_SAVING = 30
"""Seconds that a worker lives on after it was told to end."""


@dataclass(frozen=True)
class Examples(Dataset[Encoded | BadRow]):
    """A mixture as torch's `DataLoader` reads it: by the index of an example in the order of the run."""

    mixture: Mixture
    processor: Processor
    place_of: Callable[[int], int] = int
    """The place in the mixture of each index; indices go on through the epochs."""
    seed: int | None = None
    """The seed of augmentations that a source asks for; None: images stay as they are."""
    tolerant: bool = False
    """Whether a row whose image turns out to be damaged is returned as its error, instead of raising it."""
    reference: ReferenceStore | None = None
    """The log-probabilities of the reference model; each example is looked up in it."""
    fixed_pixels: bool = False
    """Whether augmentation is drawn once for each row, so that precomputed reference values stay valid."""
    corruption_seed: int = 0
    """The seed of corrupted images, together with the row."""
    packed: bool = False
    """The examples of a batch stand side by side in one row."""
    keyed: bool = False
    """Whether batches hold the keys of their examples."""

    def tokens(self, place: int) -> int:
        """The tokens that the example at this place of the mixture takes of a packed row."""
        return self.mixture.tokens(place, self.processor.requirements)

    def __getitem__(self, index: int) -> Encoded | BadRow:
        try:
            return self._with_reference(self._encoded(index))
        except BadRow as error:
            if self.tolerant:
                return error
            raise

    def _encoded(self, index: int) -> Encoded:
        place = self.place_of(index)
        part, example, requirements = self.mixture.part(place), self.mixture[place], self.processor.requirements
        other = self.mixture[(place + 1) % len(self.mixture)].answers[0].text if requirements.mismatched else None
        return self.processor.encode(
            example,
            part.max_tiles,
            augment=self._augment(index),
            corrupt=crop("spoiled", self.corruption_seed, example.origin)
            if requirements.corrupted and example.images
            else None,
            mismatched=other,
        )

    def _augment(self, index: int) -> ImageChange | None:
        place = self.place_of(index)
        if self.mixture.part(place).augment != "jpeg" or self.seed is None:
            return None
        return jpeg(self.seed, self.mixture[place].origin if self.fixed_pixels else index)

    def images(self, index: int) -> list[Image.Image]:
        """The pictures of an example, as it is encoded from them."""
        change = self._augment(index) or (lambda image: image)
        pictures = self.mixture[self.place_of(index)].images
        return [change(picture.open(self.processor.pixels.max_side)) for picture in pictures]

    def _with_reference(self, encoded: Encoded) -> Encoded:
        if self.reference is None:
            return encoded
        values = self.reference.get(encoded.key)
        if values is None or len(values) != sum(encoded.loss_tokens):
            what = "its text or its images have changed since the reference was precomputed"
            raise BadInput(f"{encoded.origin}: {what}; put them back, or start a new run")
        return replace(encoded, reference=values)


def batches(examples: Examples, order: Iterable[list[int]], workers: int) -> Iterator[Batch]:
    """The batches of these indices, in this order, whatever the number of workers."""
    processor = examples.processor
    make = partial(
        collate,
        pixels=processor.pixels,
        padding=processor.chat.tokenizer.pad_token_id,
        packed=examples.packed,
        blank=examples.mixture.has_images,
        keyed=examples.keyed,
    )
    loader = DataLoader(
        examples,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=Packing(make) if workers else make,
        worker_init_fn=begin_worker,
        multiprocessing_context=FORK if workers else None,
        generator=torch.Generator(),  # its own: the loader draws a seed, and the run's RNG must not move for it
    )
    results = _named(iter(loader))
    return (parcel.open() for parcel in results) if workers else results


class WorkerDied(RuntimeError):
    """A process that prepares batches is gone."""


def _named(found: Iterator[Any]) -> Iterator[Any]:
    """The same batches; where a worker dies, torch feels a broken pipe, a lost file or a signal, whatever is first."""
    while True:
        try:
            batch = next(found)
        except StopIteration:
            return
        except (OSError, EOFError, RuntimeError) as error:
            if dead := _dead(getattr(found, "_workers", [])):
                what = f"worker (pid {dead.pid}) is killed by signal {-(dead.exitcode or 0)}"
                raise WorkerDied(f"{what}; if memory was the reason, fewer data.workers need less") from error
            raise
        yield batch


def _dead(workers: Sequence[BaseProcess]) -> BaseProcess | None:
    """The first that was killed; one whose end has just been felt takes a moment to be known as such."""
    until = time.monotonic() + _MOMENT
    while workers and time.monotonic() < until:
        for worker in workers:
            if (worker.exitcode or 0) < 0:
                return worker
        time.sleep(0.01)
    return None


def begin_worker(_: int) -> None:
    """A worker ends with its loader and with its rank. Signals may reach it too, but only the rank answers them, with a
    checkpoint, for which it has the time: torch ends a rank whose worker has gone."""
    end_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SAVING))
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
