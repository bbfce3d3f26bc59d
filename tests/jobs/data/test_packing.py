"""Packing: everything once, nothing beyond the budget, the same number of rows everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjobs.data.batch import collate
from mmjobs.data.encode import Processor
from mmjobs.data.formats.registry import parts
from mmjobs.data.loader import Examples
from mmjobs.data.mixture import mixture
from mmjobs.data.packing import pack
from mmjobs.data.survey import survey
from mmjobs.model.build import build
from mmlaunch.recipe import Recipe

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


@pytest.mark.parametrize("objective", ["dpo", "mdpo", "reward", {"method": "preference", "terms": {"kto": {}}}])
@pytest.mark.parametrize("overlong", ["drop", "cut"])
def test_what_is_counted_is_what_stands_in_a_row(
    tiny: Callable[..., Recipe], tmp_path: Path, objective: Any, overlong: str
) -> None:
    """Or rows would be longer than their budget: all answers, the second tree, a stranger with the room it finds."""
    rows = [
        {"prompt": "?" * (1 + n % 7), "chosen": "y" * (1 + 3 * n % 11), "rejected": "n" * (2 + 5 * n % 9)}
        for n in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = {"path": str(tmp_path / "rows.jsonl"), "format": "trl", "images": "none"}
    recipe = tiny(
        objective=objective, data__train=[text, {"format": "shapes", "limit": 12}], data__overlong=overlong,
        data__max_tokens=33,
    )  # fmt: skip
    built = build(recipe.model)
    processor = Processor(built.chat, built.pixels, 33, recipe.data.overlong, recipe.objective.requirements)
    looked = survey(sum(map(parts, recipe.data.train), ()), processor)
    examples = Examples(mixture(looked, 0), processor)
    assert len(examples.mixture) > 6 and examples.mixture.has_images
    for place in range(len(examples.mixture)):
        packed = collate([examples[place]], built.pixels, 258, packed=True)
        assert packed.ids.numel() == examples.tokens(place)
