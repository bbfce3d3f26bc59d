"""Checksums of tensors, computed on their device."""

from __future__ import annotations

import torch

_PERIOD = 65_521


def checksum(values: torch.Tensor) -> tuple[int, int]:
    """Two sums over the bits of a tensor, one of which knows their order."""
    width = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    bits = values.detach().contiguous().flatten().view(width).long()
    order = torch.arange(1, len(bits) + 1, device=bits.device) % _PERIOD
    return int(bits.sum()), int((bits * order).sum())
