"""Rows: how the groups of answers are dealt to ranks and rows."""

from __future__ import annotations

from typing import Any, cast

import pytest

from mmjobs.rank.ranks import Ranks
from mmjobs.rollout.rows import Rows
from mmlaunch.recipe.batch import Batch

NOBODY = cast(Any, None)
"""Prompts, tokens and the watchdog: nobody reads them where rows are counted in answers."""


@pytest.mark.parametrize("answers", [1, 4])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro", [None, 4])
def test_no_row_is_longer_than_one_of_a_step(answers: int, world: int, micro: int | None) -> None:
    """A rollout is many steps, and an evaluation may be any number of prompts: their rows are no longer."""
    size, groups = Batch.model_validate({"global": 48, "micro": micro}), list(range(50))
    dealt = [Rows(NOBODY, size, answers, Ranks(rank, world, NOBODY)).of_rank(NOBODY, groups) for rank in range(world)]
    assert len({len(rows) for rows in dealt}) == 1, "every rank has as many rows"
    assert sorted(group for rows in dealt for row in rows for group in row) == groups
    longest = max(len(row) for rows in dealt for row in rows)
    assert longest * answers <= (micro or 48 // world)
