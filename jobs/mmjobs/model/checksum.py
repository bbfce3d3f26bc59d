"""Checksums of tensors, computed on their device."""

from __future__ import annotations

import torch

_STEP, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
"""The constants of SplitMix64 (Steele et al. 2014), as signed numbers."""


def checksum(values: torch.Tensor) -> tuple[int, int]:
    """Two sums over the bits of a tensor; in the second, each is mixed with its place, so that nothing cancels."""
    width = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    bits = values.detach().contiguous().flatten().view(width).long()
    mixed = torch.arange(1, len(bits) + 1, device=bits.device).mul_(_STEP).add_(bits)
    mixed.bitwise_xor_(mixed >> 30).mul_(_FIRST)
    mixed.bitwise_xor_(mixed >> 27).mul_(_SECOND)
    return int(bits.sum()), int(mixed.sum())
