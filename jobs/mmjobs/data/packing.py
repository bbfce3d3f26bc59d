"""Packing: the examples of a global batch in rows of at most so many tokens, the same number of rows on every rank."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

Row = tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """Rows of places in the global batch, by rank; where examples run out, a row is empty and weighs nothing."""

    ranks: tuple[tuple[Row, ...], ...]
    fill: float
    """Tokens in the rows, as a share of what the rows could hold."""


def pack(lengths: Sequence[int], world: int, budget: int) -> Packed:
    """First fit, long ones first; then rows are dealt to ranks so that each has as many, and about the same to do.

    An example that is longer than the budget has a row of its own. Equal lengths keep the order of the batch, so the
    result depends on the lengths alone, and every rank computes the same.
    """
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    rows: list[list[int]] = []
    free: list[int] = []
    for place in order:
        length = lengths[place]
        number = next((number for number, left in enumerate(free) if left >= length), None)
        if number is None:
            rows.append([place])
            free.append(budget - length)
        else:
            rows[number].append(place)
            free[number] -= length
    each = -(-len(rows) // world)
    ranks = _deal([(sum(lengths[place] for place in row), tuple(sorted(row))) for row in rows], world, each)
    capacity = (
        sum(max(budget, sum(lengths[place] for place in row)) for row in rows) + (each * world - len(rows)) * budget
    )
    return Packed(ranks, sum(lengths) / capacity if capacity else 0.0)


def _deal(rows: list[tuple[int, Row]], world: int, each: int) -> tuple[tuple[Row, ...], ...]:
    """The fullest row goes to the rank with the least to do, as long as it may take another row."""
    ranks: list[list[Row]] = [[] for _ in range(world)]
    waiting = [(0, rank) for rank in range(world)]
    for tokens, row in sorted(rows, key=lambda one: (-one[0], one[1])):
        load, rank = heapq.heappop(waiting)
        ranks[rank].append(row)
        if len(ranks[rank]) < each:
            heapq.heappush(waiting, (load + tokens, rank))
    return tuple((*own, *((),) * (each - len(own))) for own in ranks)
