"""Checksums of tensors, computed on their device."""

from __future__ import annotations

import torch

_STEP, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
"""The constants of SplitMix64 (Steele et al. 2014), as signed numbers."""
_AT_A_TIME = 1 << 24
"""Numbers that are mixed at a time: each takes 32 bytes while it is."""


def checksum(values: torch.Tensor) -> tuple[int, int]:
    """Two sums over the bits of a tensor; in the second, each is mixed with its place, so that nothing cancels."""
    width = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    whole = values.detach().contiguous().flatten().view(width)
    sums = torch.zeros(2, dtype=torch.long, device=whole.device)
    for begin in range(0, len(whole), _AT_A_TIME):
        bits = whole[begin : begin + _AT_A_TIME].long()
        mixed = torch.arange(begin + 1, begin + 1 + len(bits), device=bits.device).mul_(_STEP).add_(bits)
        mixed.bitwise_xor_(mixed >> 30).mul_(_FIRST)
        mixed.bitwise_xor_(mixed >> 27).mul_(_SECOND)
        sums += torch.stack([bits.sum(), mixed.sum()])
    one, other = sums.tolist()  # the device is waited for once
    return one, other
