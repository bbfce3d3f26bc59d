"""The batch: several examples side by side, padded on the right, their true lengths kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmjobs.data.encode import Encoded
from mmjobs.data.example import Origin

NOT_LEARNT = -100


@dataclass(frozen=True)
class Batch:
    """B sequences of at most T tokens. Masks come from lengths: every token id may be a real one."""

    ids: torch.Tensor  # [B, T]
    attention: torch.Tensor  # [B, T], 1 up to each sequence's length
    targets: torch.Tensor  # [B, T], the token to predict *at* each position from those before it, or NOT_LEARNT
    pixels: torch.Tensor  # [N, 3, S, S], in the order of the sequences
    origins: tuple[Origin, ...]

    def __len__(self) -> int:
        return len(self.origins)


def collate(encoded: Sequence[Encoded], padding: int) -> Batch:
    """One batch of these sequences; `padding` fills what no mask ever shows."""
    longest = max(len(one.prompt) + len(one.answer) for one in encoded)
    ids = torch.full((len(encoded), longest), padding)
    attention = torch.zeros(len(encoded), longest, dtype=torch.long)
    targets = torch.full((len(encoded), longest), NOT_LEARNT)
    for row, one in enumerate(encoded):
        start, length = len(one.prompt), len(one.prompt) + len(one.answer)
        ids[row, :length] = torch.tensor(one.prompt + one.answer)
        attention[row, :length] = 1
        targets[row, start:length] = torch.tensor(one.answer)
    return Batch(
        ids, attention, targets, torch.cat([one.images for one in encoded]), tuple(one.origin for one in encoded)
    )
