"""The streamed files that come next are fetched while others are read, by one process of each node."""

from __future__ import annotations

import multiprocessing
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection

import numpy as np

from mmjobs.data.loader import begin_worker
from mmjobs.data.mixture import Mixture
from mmjobs.data.readers.rows import shards_of
from mmjobs.data.readers.shards import Shards
from mmjobs.data.shuffle import ShardOrder, shard_starts
from mmlaunch.errors import BadInput, MmlaunchError

File = tuple[Shards, int]


def files_of_window(mixture: Mixture, order: ShardOrder, index: int) -> Iterator[File]:
    """The streamed files that the window of an index lies in, each once."""
    arrays, files = mixture.survey.usable.arrays, dict[tuple[int, int], File]()
    for shard in order.shards(index):
        place = mixture.places[order.starts[shard]]
        part, row = int(arrays["part"][place]), int(arrays["row"][place])
        shards = shards_of(mixture.survey.parts[part])
        if shards is not None and shards.streamed:
            number = int(np.searchsorted(shard_starts(mixture.survey.parts[part]), row, side="right")) - 1
            files[part, number] = shards, number
    yield from files.values()


def check_windows(mixture: Mixture, order: ShardOrder) -> None:
    """Refuse windows whose files do not fit in their cache: each row would fetch one. Looks at the first epoch."""
    for index in range(0, order.count, order.window):
        sizes: dict[Shards, int] = defaultdict(int)
        for shards, number in files_of_window(mixture, order, index):
            sizes[shards] += shards.size(number)
            if sizes[shards] > shards.limit:
                what = f"the files of {order.window:,} rows have more than the {shards.limit:,} bytes of cache_limit"
                raise BadInput(f"data.shuffle_window: {what}; write a smaller window, or a larger limit")


class FetchAhead:
    """Told where the training is, it fetches the files of this window and of the next one, as far as they fit."""

    def __init__(self, mixture: Mixture, order: ShardOrder) -> None:
        self._order, self._window = order, -1
        receiving, self._sending = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.Process(target=_work, args=(receiving, mixture, order), daemon=True)
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


def _work(receiving: Connection, mixture: Mixture, order: ShardOrder) -> None:
    begin_worker(0)
    while True:
        try:
            index = receiving.recv()
        except EOFError:
            return
        for shards, number in _fitting(mixture, order, index):
            if receiving.poll():
                break  # the training is elsewhere by now
            with suppress(MmlaunchError), shards.lease(number):  # who reads it will say what is wrong
                pass


def _fitting(mixture: Mixture, order: ShardOrder, index: int) -> Iterator[File]:
    """The files of a window and of the next one, as long as they fit in the cache together."""
    epoch, place = divmod(index, order.count)
    following = epoch * order.count + min(order.count, place + order.window)
    sizes: dict[Shards, int] = defaultdict(int)
    seen: set[File] = set()
    for window in (index, following):
        for file in files_of_window(mixture, order, window):
            shards, number = file
            sizes[shards] += shards.size(number) if file not in seen else 0
            seen.add(file)
            if sizes[shards] > shards.limit:
                return
            yield file
