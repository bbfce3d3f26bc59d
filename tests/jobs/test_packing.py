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


def test_long_examples_come_first_and_rows_are_filled() -> None:
    assert pack([30, 30, 30, 70, 70, 70], 1, 100).fill == 1.0
    assert pack([50, 50], 1, 100).ranks == (((0, 1),),)


def test_the_fullest_row_goes_to_whoever_has_the_least_to_do() -> None:
    lengths = [100, 100, 51, 51]
    ranks = pack(lengths, 2, 100).ranks
    assert [sum(lengths[place] for row in rank for place in row) for rank in ranks] == [151, 151]
    lengths = [100, 70, 70, 60, 60, 60]
    ranks = pack(lengths, 2, 100).ranks
    assert sorted(sum(lengths[place] for row in rank for place in row) for rank in ranks) == [200, 220]
    assert pack([500, 50, 60], 2, 100).ranks == (((0,), ()), ((2,), (1,)))


def test_an_example_beyond_the_budget_stands_alone_and_no_rank_has_more_rows() -> None:
    packed = pack([500, 60, 60, 60], 2, 100)
    assert [len(rank) for rank in packed.ranks] == [2, 2]
    assert pack([500, 50, 60], 2, 100).fill == 610 / 800
