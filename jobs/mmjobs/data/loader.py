"""The loader: batches in a given order, prepared by worker processes when the recipe asks for some."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset

from mmjobs.data.augment import jpeg
from mmjobs.data.batch import Batch, collate
from mmjobs.data.encode import Encoded, Processor
from mmjobs.data.example import BadRow
from mmjobs.data.mixture import Mixture


@dataclass(frozen=True)
class Examples(Dataset[Encoded | BadRow]):
    """A mixture as torch's loader wants it: by the index of an example in the order of the run."""

    mixture: Mixture
    processor: Processor
    place_of: Callable[[int], int] = int
    """The place in the mixture of each index; indices go on through the epochs."""
    seed: int | None = None
    """None: as the images are; otherwise what the sources ask to change in them is drawn from it."""
    tolerant: bool = False
    """A row whose image turns out to be damaged is handed on as its error."""

    def __getitem__(self, index: int) -> Encoded | BadRow:
        place = self.place_of(index)
        part = self.mixture.part(place)
        spoil = jpeg(self.seed, index) if part.augment == "jpeg" and self.seed is not None else None
        try:
            return self.processor.encode(self.mixture[place], part.max_tiles, spoil)
        except BadRow as error:
            if self.tolerant:
                return error
            raise


def batches(examples: Examples, order: Iterable[list[int]], workers: int, packed: bool = False) -> Iterator[Batch]:
    """The batches of these indices, in this order, whatever the number of workers."""
    processor = examples.processor
    loader = DataLoader(
        examples,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=partial(
            collate,
            pixels=processor.pixels,
            padding=processor.chat.tokenizer.pad_token_id,
            packed=packed,
            blank=examples.mixture.has_images,
        ),
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # its own: the loader draws a seed, and the run's RNG must not move for it
    )
    return iter(loader)


def _begin_worker(number: int) -> None:
    """A worker ends when it is told to; only the rank itself answers signals with a checkpoint."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    torch.set_num_threads(1)
