"""Checksums: equal tensors have equal ones, and what changes a tensor changes them."""

from __future__ import annotations

import pytest
import torch

from mmjobs.model import checksum as module
from mmjobs.model.checksum import checksum


@pytest.mark.parametrize(("down", "right"), [(195, 1), (1, 0), (0, 1), (131, 2), (97, 168)])
def test_the_place_of_what_an_image_shows_matters(down: int, right: int) -> None:
    """195 rows and a column of 336 are 65,521 places: a period of the same length would not see the move."""
    images = torch.zeros(2, 3, 336, 336)
    images[0, :, 20:60, 30:70] = 0.7
    images[1, :, 20 + down : 60 + down, 30 + right : 70 + right] = 0.7
    assert images[0].sum() == images[1].sum()
    assert checksum(images[0]) != checksum(images[1])
    assert checksum(images[0]) == checksum(images[0].clone())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
def test_every_digit_and_the_order_matter(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.randint(-100, 100, (50, 70)).to(dtype)
    changed = values.clone()
    changed[49, 69] += 1
    swapped = values.clone()
    swapped[[3, 4]] = values[[4, 3]]
    assert len({checksum(one) for one in (values, changed, swapped, values.T)}) == 4
    assert checksum(values.T.contiguous().T) == checksum(values), "not how it lies in memory"


def test_large_tensors_are_summed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    whole = checksum(values)
    monkeypatch.setattr(module, "_AT_A_TIME", 7)
    assert checksum(values) == whole
