"""The order by shards: every row once an epoch, from few shards at a time, a function of seed and index alone."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjobs.data.fetch_ahead import StreamedFiles, check_windows
from mmjobs.data.mixture import Mixture, mixture
from mmjobs.data.readers.row import Row
from mmjobs.data.readers.rows import Part, Rows
from mmjobs.data.readers.shards import Shards
from mmjobs.data.sampler import position
from mmjobs.data.shuffle import ShardOrder, order_of
from mmjobs.data.survey_rows import LeftOut, Survey, Usable, flat
from mmlaunch.errors import BadInput, RecipeError
from mmlaunch.load import load_recipe
from mmlaunch.recipe.data import Data

RECIPES = Path(__file__).resolve().parents[3] / "recipes"


@dataclass(frozen=True)
class Files:
    """A table in files of so many rows, which are fetched where there is a limit: a byte each row."""

    lengths: tuple[int, ...]
    limit: int = 0

    @property
    def streamed(self) -> bool:
        return self.limit > 0

    def name(self, number: int) -> str:
        return str(number)

    def size(self, number: int) -> int:
        return self.lengths[number]

    def lease(self, number: int) -> AbstractContextManager[Path]:
        raise NotImplementedError

    def __len__(self) -> int:
        return sum(self.lengths)

    def row(self, index: int) -> Row:
        raise NotImplementedError

    @property
    def shards(self) -> Shards:
        return self

    @property
    def shard_starts(self) -> Any:
        return np.cumsum((0, *self.lengths[:-1]))

    def file(self, row: int) -> int:
        return int(np.searchsorted(self.shard_starts, row, side="right"))


def mixed(*parts: Part, bad: tuple[int, ...] = ()) -> Mixture:
    """A mixture of these parts, without some rows of each."""
    rows = [
        LeftOut(number, row, "bad", "", "") if row in bad else Usable(number, row, 1, (1,), (), b"q" * 12, b"c" * 12)
        for number, part in enumerate(parts)
        for row in range(len(part.rows))
    ]
    return mixture(Survey(parts, *flat(rows)), seed=0, tolerant=True)


def part(lengths: tuple[int, ...], repeat: float = 1.0, skip: int = 0, limit: int = 0) -> Part:
    table = Files(lengths, limit)
    return Part("here", Rows(table, range(skip, len(table)), lambda row: pytest.fail(str(row))), repeat)


def by_shards(window: int) -> Data:
    return Data.model_validate({"shuffle": "shards", "shuffle_window": window})


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    window=st.integers(1, 30),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 2),
)
def test_every_epoch_shows_every_row_once(lengths: list[int], window: int, seed: int, epoch: int) -> None:
    count = sum(lengths)
    order = ShardOrder(np.cumsum([0, *lengths[:-1]]), count, seed, window)
    shown = [order(index) for index in range(epoch * count, (epoch + 1) * count)]
    assert sorted(shown) == list(range(count))
    again = ShardOrder(np.cumsum([0, *lengths[:-1]]), count, seed, window)
    assert [again(index) for index in reversed(range(epoch * count, (epoch + 1) * count))] == shown[::-1]
    for begin in range(0, count, window):
        shards = {
            int(np.searchsorted(order.starts, place, side="right")) - 1 for place in shown[begin : begin + window]
        }
        assert set(order.shards(epoch * count + begin)) == shards


def test_rows_come_from_few_shards_and_are_mixed() -> None:
    data = mixed(part((50,) * 40))
    order = order_of(data, by_shards(100), seed=1)
    epochs = [[order(index) for index in range(start, start + 2000)] for start in (0, 2000)]
    for shown in epochs:
        shards = [place // 50 for place in shown]
        assert all(len(set(shards[begin : begin + 100])) == 2 for begin in range(0, 2000, 100))
        assert sum(one != other for one, other in pairwise(shards[:100])) > 25
        visits = [shard for shard in range(40) if len({at // 100 for at, one in enumerate(shards) if one == shard}) > 1]
        assert not visits, "a shard is read in one window"
    assert epochs[0] != epochs[1] and [place // 50 for place in epochs[0]] != [place // 50 for place in epochs[1]]
    assert order_of(data, Data(), seed=1)(7) == position(7, 2000, 1), "without the option, as it was"


def test_sources_repeats_and_rows_that_are_left_out() -> None:
    data = mixed(part((4, 4, 4), repeat=2.5, skip=2), part((3, 3)), Part("lines", [None] * 2500), bad=(1, 5))  # type: ignore[list-item]  # nobody reads them
    order = order_of(data, by_shards(7), seed=0)
    assert isinstance(order, ShardOrder)
    shown = Counter(order(index) for index in range(len(data)))
    assert set(shown.values()) == {1} and len(shown) == len(data)
    repeats = 3 + 3 + 2  # the drawn half has rows of two
    assert len(order.starts) == repeats + 2 + 3, "and stretches of 1,000 lines"
    rows = Counter((data.usable(order(index)).part, data.usable(order(index)).row) for index in range(len(data)))
    assert {rows[0, row] for row in range(10) if row not in (1, 5)} == {2, 3}


def test_what_is_fetched_ahead_and_what_never_fits() -> None:
    data = mixed(part((10,) * 20, limit=45), part((10,) * 20))
    order = order_of(data, by_shards(20), seed=0)
    assert isinstance(order, ShardOrder)
    files = StreamedFiles.of(data, order)
    check_windows(files)
    for begin in range(0, 400, 20):
        rows = [data.usable(order(index)) for index in range(begin, begin + 20)]
        read = {row.row // 10 for row in rows if row.part == 0}
        assert {number for _, number in files.of_window(begin)} == read
        after = [data.usable(order(index)) for index in range(begin + 20, begin + 40)]
        assert {number for _, number in files.fitting(begin + 3)} == read | {
            row.row // 10 for row in after if row.part == 0
        }
    few = mixed(part((10,) * 20, limit=25))
    order = order_of(few, by_shards(20), seed=0)
    assert isinstance(order, ShardOrder)
    assert all(len(list(StreamedFiles.of(few, order).fitting(index))) == 2 for index in range(0, 200, 20))
    order = order_of(few, by_shards(30), seed=0)
    assert isinstance(order, ShardOrder)
    with pytest.raises(
        BadInput, match="the files of 30 rows have more than the 25 bytes of cache_limit; write a smaller"
    ):
        check_windows(StreamedFiles.of(few, order))


def test_the_recipe() -> None:
    loaded = load_recipe(RECIPES / "quickstart.yaml", ["data.shuffle=shards", "data.shuffle_window=64"])
    assert (loaded.recipe.data.shuffle, loaded.recipe.data.shuffle_window) == ("shards", 64)
    with pytest.raises(RecipeError, match=r"did you mean data\.shuffle_window"):
        load_recipe(RECIPES / "quickstart.yaml", ["data.shuffle_buffer=64"])
