"""Heads: one number for a sequence, read from its last real token, whatever stands behind it."""

from __future__ import annotations

import torch
from torch import nn


class ScoreHead(nn.Module):
    """A linear layer without bias: a constant would cancel in every comparison, and drift."""

    def __init__(self, width: int, zero: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.linear.weight, std=0.0 if zero else 1 / (width + 1))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.linear(hidden.to(self.linear.weight.dtype)).squeeze(-1).float()
        return scores  # [..., D] -> [...]


def last(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The hidden state of each sequence's last real token, by its length and never by its ids: [B, T, D] -> [B, D]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
