"""Attention over trees: who sees whom, which models it is for, and when one kernel does it all."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from mmjobs.model import trees


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=4))
def test_segments_and_mask_say_the_same(shape: list[list[int]]) -> None:
    found = [(prompt + 1, *answers) for prompt, *answers in shape]
    seen = trees.mask(found)
    asks, sees, places = trees.segments(found)
    row, at = 0, 0
    for queries, keys in zip(asks, sees, strict=True):
        for query in range(queries):  # causal at the end
            expected = torch.zeros(len(seen), dtype=torch.bool)
            expected[places[at : at + keys - queries + query + 1]] = True
            assert torch.equal(seen[row], expected)
            row += 1
        at += keys
    assert row == len(seen) and at == len(places)
