"""The `mlp` projector: LLaVA's two layers with a GELU between them."""

from __future__ import annotations

import torch
from torch import nn

from mmjobs.model.projectors.widths import Widths


class MlpProjector(nn.Module):
    """The parameters and the arithmetic of transformers' LLaVA, so that every tool takes the model for a LLaVA."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(widths.vision, widths.language)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(widths.language, widths.language)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.linear_2(self.act(self.linear_1(features)))  # [N, P, V] -> [N, P, D]
        return projected


build = MlpProjector


def features(widths: Widths) -> int:
    """One for each patch."""
    return widths.patches
