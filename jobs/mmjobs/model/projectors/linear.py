"""The `linear` projector: one linear layer and a layer norm."""

from __future__ import annotations

import torch
from torch import nn

from mmjobs.model.projectors.widths import Widths


class LinearProjector(nn.Module):
    """Image features to the width of the language model, at the scale of its embeddings."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.linear = nn.Linear(widths.vision, widths.language)
        self.norm = nn.LayerNorm(widths.language)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.norm(self.linear(features))  # [N, P, V] -> [N, P, D]
        return projected


build = LinearProjector


def features(widths: Widths) -> int:
    """One for each patch."""
    return widths.patches
