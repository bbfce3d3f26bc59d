"""The order of examples: a function of the seed and the global index alone, whatever the number of ranks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import lru_cache

import torch


def seed_of(*parts: object) -> int:
    """One 63-bit seed for several parts; near ones give unrelated seeds."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def shuffled(count: int, *parts: object) -> list[int]:
    """The numbers below `count` in an order that the parts decide."""
    generator = torch.Generator().manual_seed(seed_of(*parts))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order


def repeated(count: int, repeat: float, *parts: object) -> list[int]:
    """The rows of a source with its `repeat`: each as often as its whole part says, a seeded choice once more."""
    whole = math.floor(repeat)
    more = round((repeat - whole) * count)
    return [*(row for _ in range(whole) for row in range(count)), *sorted(shuffled(count, *parts)[:more])]


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    return tuple(shuffled(count, "order", seed, epoch))


def position(index: int, count: int, seed: int) -> int:
    """The place, in a mixture of `count` examples, of the example with this global index; epochs follow one another."""
    epoch, place = divmod(index, count)
    return _epoch(seed, epoch, count)[place]


def micro_batches(start: int, steps: int, examples: int, rank: int, world: int, micro: int) -> Iterator[list[int]]:
    """The global indices of each micro-batch of one rank, in the `steps` steps from index `start` on.

    The global batch of a step is the same whatever the world: each rank takes its contiguous share of it.
    """
    share = examples // world
    for step in range(steps):
        first = start + step * examples + rank * share
        for begin in range(first, first + share, micro):
            yield list(range(begin, begin + micro))
