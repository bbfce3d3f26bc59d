"""The `linear` projector: one linear layer and a layer norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import LlavaConfig


class LinearProjector(nn.Module):
    """Image features to the width of the language model, at the scale of its embeddings."""

    def __init__(self, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_width, language_width)
        self.norm = nn.LayerNorm(language_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.norm(self.linear(features))  # [N, P, V] -> [N, P, D]
        return projected


def build(config: LlavaConfig) -> nn.Module:
    """The projector between the two widths of `config`."""
    vision: Any = config.vision_config
    language: Any = config.text_config
    return LinearProjector(vision.hidden_size, language.hidden_size)
