"""Packing: everything once, nothing beyond the budget, the same number of rows everywhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mmjobs.data.packing import pack

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 8), st.integers(100, 400))
def test_every_example_once_and_equal_rows(lengths: list[int], world: int, budget: int) -> None:
    packed = pack(lengths, world, budget)
    rows = [row for rank in packed.ranks for row in rank]
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in row) <= budget for row in rows)
    assert len({len(rank) for rank in packed.ranks}) == 1 and len(packed.ranks) == world
    assert packed.fill == sum(lengths) / (len(rows) * budget)
    assert packed == pack(lengths, world, budget)
    full = [row for row in rows if row]
    assert len(full) <= 2 * sum(lengths) / budget + 1  # first fit leaves at most one row half empty
    assert len(rows) - len(full) < world


@given(LENGTHS, st.integers(1, 4))
def test_loads_are_balanced(lengths: list[int], world: int) -> None:
    packed = pack(lengths, world, 200)
    loads = [sum(lengths[place] for row in rank for place in row) for rank in packed.ranks]
    assert max(loads) - min(loads) <= 400


def test_an_example_beyond_the_budget_stands_alone() -> None:
    packed = pack([500, 50, 60], 2, 100)
    assert packed.ranks == (((0,),), ((1,),)) or sorted(len(row) for rank in packed.ranks for row in rank) == [
        0,
        1,
        1,
        1,
    ]
