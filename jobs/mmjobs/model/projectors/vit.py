"""The `vit` projector: one more encoder layer, then a linear layer and a layer norm."""

from __future__ import annotations

import torch
from torch import nn

from mmjobs.model.projectors.linear import LinearProjector
from mmjobs.model.projectors.widths import Widths


class VitProjector(nn.Module):
    """Patches attend to each other once more before they are projected."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            widths.vision,
            widths.vision_heads,
            4 * widths.vision,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.project = LinearProjector(widths)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.project(self.layer(features))  # [N, P, V] -> [N, P, D]
        return projected


build = VitProjector


def features(widths: Widths) -> int:
    """One for each patch."""
    return widths.patches
