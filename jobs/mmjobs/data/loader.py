"""The loader: batches in a given order, prepared by worker processes when the recipe asks for some."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from mmjobs.data.batch import Batch, collate
from mmjobs.data.encode import Encoded, Processor
from mmjobs.data.mixture import Mixture
from mmjobs.model import tokens


class _Examples(Dataset[Encoded]):
    """A mixture as torch's loader wants it."""

    def __init__(self, mixture: Mixture, processor: Processor) -> None:
        self.mixture = mixture
        self.processor = processor

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, place: int) -> Encoded:
        return self.processor.encode(self.mixture[place])


@dataclass(frozen=True)
class _Collate:
    padding: int

    def __call__(self, encoded: list[Encoded]) -> Batch:
        return collate(encoded, self.padding)


def batches(mixture: Mixture, processor: Processor, order: Iterable[list[int]], workers: int) -> Iterator[Batch]:
    """The batches of these places of the mixture, in this order, whatever the number of workers."""
    loader = DataLoader(
        _Examples(mixture, processor),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_Collate(tokens.id_of(processor.tokenizer, tokens.PAD)),
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # its own: the loader draws a seed, and the run's RNG must not move for it
    )
    return iter(loader)


def _begin_worker(number: int) -> None:
    """A worker ends when it is told to; only the rank itself answers signals with a checkpoint."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    torch.set_num_threads(1)
