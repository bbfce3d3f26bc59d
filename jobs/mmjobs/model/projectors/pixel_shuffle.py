"""The `pixel_shuffle` projector: InternVL's, four neighbouring patches become one feature."""

from __future__ import annotations

import torch
from torch import nn

from mmjobs.model.projectors.widths import Widths
from mmlaunch.errors import BadInput

FACTOR = 2


class PixelShuffleProjector(nn.Module):
    """Squares of 2 x 2 patches side by side in one vector; then layer norm, linear, GELU, linear."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        if widths.side % FACTOR:
            raise BadInput(f"model.projector: pixel_shuffle needs an even number of patches a side, not {widths.side}")
        self.side, self.class_token = widths.side, widths.class_token
        joined = widths.vision * FACTOR**2
        self.norm = nn.LayerNorm(joined)
        self.linear_1 = nn.Linear(joined, widths.language)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(widths.language, widths.language)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        patches = features[:, 1:] if self.class_token else features  # [N, P, V]
        joined = self.norm(shuffled(patches.reshape(len(patches), self.side, self.side, -1)))
        projected: torch.Tensor = self.linear_2(self.act(self.linear_1(joined)))  # [N, P/4, 4 V] -> [N, P/4, D]
        return projected


build = PixelShuffleProjector


def features(widths: Widths) -> int:
    """One for each square of patches."""
    return (widths.side // FACTOR) ** 2


def shuffled(grid: torch.Tensor) -> torch.Tensor:
    """Each 2 x 2 square as one vector, rows first, in InternVL's second order: [N, H, W, V] -> [N, H W / 4, 4 V]."""
    count, height, width, depth = grid.shape
    squares = grid.view(count, height // FACTOR, FACTOR, width // FACTOR, FACTOR, depth)
    return squares.permute(0, 1, 3, 2, 4, 5).reshape(count, -1, FACTOR * FACTOR * depth)
