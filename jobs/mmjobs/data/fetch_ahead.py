"""The streamed files that come next are fetched while others are read, by one process of each node."""

from __future__ import annotations

import multiprocessing
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from mmjobs.data.loader import begin_worker
from mmjobs.data.mixture import Mixture
from mmjobs.data.parent import FORK
from mmjobs.data.readers.rows import shards_of
from mmjobs.data.readers.shards import Shards
from mmjobs.data.sampler import Numbers
from mmjobs.data.shuffle import ShardOrder, shard_starts
from mmlaunch.errors import BadInput, MmlaunchError

File = tuple[Shards, int]


@dataclass(frozen=True)
class StreamedFiles:
    """The files that a mixture reads in an order of its shards."""

    order: ShardOrder
    sources: tuple[Shards | None, ...]
    """Of each part; None where its files are here."""
    parts: Numbers
    """Of each shard of the order: its part, and the number of its file there."""
    numbers: Numbers

    @classmethod
    def of(cls, mixture: Mixture, order: ShardOrder) -> StreamedFiles:
        arrays, parts = mixture.survey.usable.arrays, mixture.survey.parts
        part_of, row_of = (arrays[name][mixture.places[order.starts]] for name in ("part", "row"))
        numbers, sources = np.zeros(len(order.starts), np.int64), list[Shards | None]()
        for number, part in enumerate(parts):
            shards, its = shards_of(part), part_of == number
            numbers[its] = np.searchsorted(shard_starts(part), row_of[its], side="right") - 1
            sources.append(shards if shards is not None and shards.streamed else None)
        return cls(order, tuple(sources), part_of, numbers)

    def of_window(self, index: int) -> Iterator[File]:
        """Those that the window of an index lies in, each once."""
        seen: set[tuple[int, int]] = set()
        for shard in self.order.shards(index):
            file = int(self.parts[shard]), int(self.numbers[shard])
            shards = self.sources[file[0]]
            if shards is not None and file not in seen:
                seen.add(file)
                yield shards, file[1]

    def fitting(self, index: int) -> Iterator[File]:
        """The files of a window and of the next one, as long as they fit in their caches together."""
        epoch, place = divmod(index, self.order.count)
        following = epoch * self.order.count + min(self.order.count, place + self.order.window)
        sizes: dict[int, int] = defaultdict(int)
        for shards, number in dict.fromkeys((*self.of_window(index), *self.of_window(following))):
            sizes[id(shards)] += shards.size(number)
            if sizes[id(shards)] > shards.limit:
                return
            yield shards, number


def check_windows(files: StreamedFiles) -> None:
    """Refuse windows whose files do not fit in their cache: each row would fetch one. Looks at the first epoch."""
    for index in range(0, files.order.count, files.order.window) if any(files.sources) else ():
        sizes: dict[int, int] = defaultdict(int)
        for shards, number in files.of_window(index):
            sizes[id(shards)] += shards.size(number)
            if sizes[id(shards)] > shards.limit:
                what = (
                    f"the files of {files.order.window:,} rows have more than the {shards.limit:,} bytes of cache_limit"
                )
                raise BadInput(f"data.shuffle_window: {what}; write a smaller window, or a larger limit")


class FetchAhead:
    """Told where the training is, it fetches the files of this window and of the next one, as far as they fit."""

    def __init__(self, files: StreamedFiles) -> None:
        self._order, self._window = files.order, -1
        receiving, self._sending = multiprocessing.Pipe(duplex=False)
        process = FORK.Process(target=_work, args=(receiving, files), daemon=True)
        process.start()
        receiving.close()

    def at(self, index: int) -> None:
        """The global index that is trained on now."""
        epoch, place = divmod(index, self._order.count)
        window = epoch * self._order.count + place // self._order.window * self._order.window
        if window != self._window:
            self._window = window
            with suppress(OSError):  # it is gone: files are fetched when they are read
                self._sending.send(window)


def _work(receiving: Connection, files: StreamedFiles) -> None:
    begin_worker(0)
    while True:
        try:
            index = receiving.recv()
        except EOFError:
            return
        for shards, number in files.fitting(index):
            if receiving.poll():
                break  # the training is elsewhere by now
            with suppress(MmlaunchError), shards.lease(number):  # who reads it will say what is wrong
                pass
