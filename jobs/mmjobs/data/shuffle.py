"""The order of examples where shards are read in turn: a function of the seed and the global index, as in `sampler`.

Each epoch has its own order of the shards. Their rows, one behind the other, are cut into windows, and the rows of a
window are shuffled: so at any time rows come from the few shards that a window lies in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from mmjobs.data.mixture import Mixture
from mmjobs.data.readers.rows import Part, Rows, Sharded
from mmjobs.data.sampler import Numbers, position, shuffled
from mmlaunch.recipe.data import Data

STRETCH = 1000
"""A file whose rows are all as near as each other counts as shards of so many."""


@dataclass(frozen=True, eq=False)
class ShardOrder:
    """The place in a mixture of each global index."""

    starts: Numbers
    """Where each shard begins in the mixture; one that is repeated is there again."""
    count: int
    seed: int
    window: int

    def __call__(self, index: int) -> int:
        epoch, place = divmod(index, self.count)
        number, inside = divmod(place, self.window)
        return int(_window(self, epoch, number)[inside])

    def shards(self, index: int) -> list[int]:
        """The shards that the window of an index lies in, by their number in `starts`, in the order of the epoch."""
        epoch, place = divmod(index, self.count)
        begin = place // self.window * self.window
        order, ends = _epoch(self, epoch)
        first, last = np.searchsorted(ends, [begin, min(self.count, begin + self.window) - 1], side="right")
        return [int(shard) for shard in order[first : last + 1]]


@lru_cache(maxsize=2)
def _epoch(order: ShardOrder, epoch: int) -> tuple[Numbers, Numbers]:
    """The shards in the order of an epoch, and where each ends in it."""
    lengths = np.diff(np.r_[order.starts, order.count])
    shards = shuffled(len(lengths), "shards", order.seed, epoch)
    return shards, np.cumsum(lengths[shards])


@lru_cache(maxsize=8)
def _window(order: ShardOrder, epoch: int, number: int) -> Numbers:
    """The places of a window in their order."""
    shards, ends = _epoch(order, epoch)
    begin, end = number * order.window, min(order.count, (number + 1) * order.window)
    stops = np.r_[order.starts[1:], order.count]
    places = []
    for at in range(int(np.searchsorted(ends, begin, side="right")), len(shards)):
        stop, length = int(stops[shards[at]]), int(stops[shards[at]] - order.starts[shards[at]])
        first = int(ends[at]) - length  # of this shard, in the order of the epoch
        if first >= end:
            break
        places.append(np.arange(stop - length + max(0, begin - first), stop - max(0, first + length - end)))
    rows = np.concatenate(places)
    return rows[shuffled(len(rows), "window", order.seed, epoch, number)]


def order_of(mixture: Mixture, data: Data, seed: int) -> Callable[[int], int]:
    """The place in the mixture of each global index, in the order that the recipe wants."""
    if data.shuffle == "rows" or not len(mixture):
        return partial(position, count=len(mixture), seed=seed)
    return ShardOrder(_starts(mixture), len(mixture), seed, data.shuffle_window)


def _starts(mixture: Mixture) -> Numbers:
    """Where the shards of all parts begin in a mixture: in each, rows of one shard stand behind each other."""
    arrays = mixture.survey.usable.arrays
    parts, rows = arrays["part"][mixture.places], arrays["row"][mixture.places]
    begins = [np.zeros(1, np.int64)]
    for number, part in enumerate(mixture.survey.parts):
        first, last = np.searchsorted(parts, [number, number + 1])
        shards = np.searchsorted(shard_starts(part), rows[first:last], side="right")
        other = (np.diff(shards) != 0) | (np.diff(rows[first:last]) <= 0)  # a repeat begins from the first row on
        begins += [np.array([first]), first + 1 + np.flatnonzero(other)]
    starts: Numbers = np.unique(np.concatenate(begins))
    return starts[starts < len(mixture)]


def shard_starts(part: Part) -> Numbers:
    """The first row of each shard among the rows of a part; the rows before the first one have a shard too."""
    rows = part.rows
    if isinstance(rows, Rows) and isinstance(rows.table, Sharded) and isinstance(rows.chosen, range):
        starts: Numbers = rows.table.shard_starts - rows.chosen.start
        return starts
    return np.arange(0, len(rows), STRETCH)
