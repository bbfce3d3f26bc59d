"""The `perceiver` projector: learned queries on a square grid attend to the patches; each becomes one feature."""

from __future__ import annotations

import math

import torch
from torch import nn

from mmjobs.model.projectors.widths import Widths
from mmlaunch.errors import BadInput

QUERIES = 256
_HEAD = 128


class PerceiverProjector(nn.Module):
    """Cross-attention from Q queries to the patches; both have fixed 2-D sinusoidal positions."""

    query_places: torch.Tensor
    patch_places: torch.Tensor

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        width, count = widths.language, features(widths)
        side = math.isqrt(count)
        if side**2 != count:
            raise BadInput(f"model.projector.queries: {count} is not a square; write {side**2} or {(side + 1) ** 2}")
        if width % 4:
            raise BadInput(f"model.projector: a perceiver needs a language width that divides by 4, not {width}")
        self.class_token = widths.class_token
        self.queries = nn.Parameter(torch.empty(count, width))  # [Q, D]
        nn.init.trunc_normal_(self.queries, std=0.02)
        self.keys = nn.Linear(widths.vision, width)
        self.keys_norm = nn.LayerNorm(width)
        self.queries_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, _heads(width), batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, width)
        self.register_buffer("query_places", _places(side, width))  # [Q, D]
        self.register_buffer("patch_places", _places(widths.side, width))  # [P, D]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        patches = features[:, 1:] if self.class_token else features  # [N, P, V]
        values = self.keys_norm(self.keys(patches))  # [N, P, D]
        keys = values + self.patch_places.to(values.dtype)
        queries = self.queries_norm(self.queries) + self.query_places.to(values.dtype)  # [Q, D]
        attended, _ = self.attention(
            queries.expand(len(patches), -1, -1), keys, values, need_weights=False
        )  # [N, Q, D]
        projected: torch.Tensor = self.project(self.norm(attended))
        return projected


build = PerceiverProjector


def features(widths: Widths) -> int:
    """One for each query."""
    return widths.queries or QUERIES


def _heads(width: int) -> int:
    """The number of heads: about 128 numbers in each, and a divisor of the width."""
    return next(heads for heads in range(max(1, width // _HEAD), 0, -1) if width % heads == 0)


def _places(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of row and column, a quarter of the width each, on a grid that spans 16 whatever its side."""
    quarter = width // 4
    rates = 10_000 ** (-torch.arange(quarter, dtype=torch.float32) / quarter)
    steps = torch.arange(side, dtype=torch.float32) * (16 / side)
    angles = steps[:, None] * rates  # [S, D/4]
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [S, D/2]
    rows, columns = line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).reshape(side * side, width)
