"""The order of examples: a function of the seed and the global index alone, whatever the number of ranks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from mmjobs.data.packing import pack

Numbers = np.ndarray[Any, np.dtype[np.int64]]


def seed_of(*parts: object) -> int:
    """One 63-bit seed for several parts; near ones give unrelated seeds."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def shuffled(count: int, *parts: object) -> Numbers:
    """The numbers below `count` in an order that the parts decide."""
    generator = torch.Generator().manual_seed(seed_of(*parts))
    order: Numbers = torch.randperm(count, generator=generator).numpy()
    return order


def repeated(count: int, repeat: float, *parts: object) -> Numbers:
    """The rows of a source with its `repeat`: each as often as its whole part says, a seeded choice once more."""
    whole = math.floor(repeat)
    more = round((repeat - whole) * count)
    return np.concatenate([np.tile(np.arange(count), whole), np.sort(shuffled(count, *parts)[:more])])


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, count: int) -> Numbers:
    return shuffled(count, "order", seed, epoch)


def position(index: int, count: int, seed: int) -> int:
    """The place, in a mixture of `count` examples, of the example with this global index; epochs follow one another."""
    epoch, place = divmod(index, count)
    return int(_epoch(seed, epoch, count)[place])


MicroBatches = Callable[[int], list[list[int]]]
"""The micro-batches of one rank, by the global index that a step begins at: each is a list of global indices."""


def equal_batches(examples: int, rank: int, world: int, micro: int) -> MicroBatches:
    """`micro` examples in each. The global batch of a step is the same whatever the world: ranks take their shares."""
    share = examples // world

    def of_step(start: int) -> list[list[int]]:
        first = start + rank * share
        return [list(range(begin, begin + micro)) for begin in range(first, first + share, micro)]

    return of_step


def packed_batches(examples: int, rank: int, world: int, budget: int, tokens: Callable[[int], int]) -> MicroBatches:
    """Rows of at most `budget` tokens, as many on each rank; `tokens` tells the length of the example of an index."""

    @lru_cache(maxsize=4)
    def of_step(start: int) -> list[list[int]]:
        packed = pack([tokens(index) for index in range(start, start + examples)], world, budget)
        return [[start + place for place in row] for row in packed.ranks[rank]]

    return of_step


def in_order(batches: MicroBatches, start: int, steps: int, examples: int) -> Iterator[list[int]]:
    """The micro-batches of one rank in the `steps` steps from global index `start` on."""
    for step in range(steps):
        yield from batches(start + step * examples)


def split_over_ranks(
    places: Sequence[int], size_of: Callable[[int], int], budget: int, rank: int, world: int
) -> list[list[int]]:
    """The batches of a rank: each holds places whose sizes fit the budget together, or one that is larger alone.

    All ranks have as many batches; the last one may be empty.
    """
    batches: list[list[int]] = []
    left = 0
    for place in places:
        size = size_of(place)
        if not batches or size > left:
            batches.append([])
            left = budget
        batches[-1].append(place)
        left -= size
    batches += [[]] * (-len(batches) % world)
    return batches[rank::world]


def one_each(place: int) -> int:
    """The size of a place where they are counted."""
    return 1
