"""MMCA: attention with a softmax of its own for each modality, so that many image tokens never outweigh a few words.

A text query adds the softmax over the earlier text to the softmax over the earlier images; an image query adds the
softmax over the earlier text to its own value (algorithms of DeepSpeed-VisualChat, with two corrections: a query that
sees nothing of a modality gets nothing from it, and nothing ever looks ahead).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "mmca"


def attention(
    module: nn.Module,
    query: torch.Tensor,  # [B, H, T, E]
    key: torch.Tensor,  # [B, G, S, E], G heads that H / G query heads share
    value: torch.Tensor,  # [B, G, S, E]
    attention_mask: torch.Tensor | None,  # [B, 1, T, S], true where a query attends to a key
    scaling: float | None = None,
    dropout: float = 0.0,
    images: torch.Tensor | None = None,  # [B, S], true where a key belongs to an image; the queries are the last T
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The sum of both modalities' outputs for each query: [B, T, H, E]."""
    if images is None:
        raise TypeError("mmca needs to know which tokens are images")
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    length, width = query.shape[2], key.shape[2]
    scores = (query @ key.transpose(2, 3)) * (scaling or 1 / math.sqrt(query.shape[3]))  # [B, H, T, S]
    if attention_mask is None:
        ones = torch.ones(length, width, dtype=torch.bool, device=query.device)
        attention_mask = ones.tril(width - length)[None, None]
    of_image = images[:, None, None, :]  # [B, 1, 1, S]
    is_image_query = images[:, None, width - length :, None]  # [B, 1, T, 1]
    weights = _softmax(scores, attention_mask & ~of_image)
    weights = weights + _softmax(scores, attention_mask & of_image & ~is_image_query)
    weights = nn.functional.dropout(weights, dropout, module.training)
    own = torch.where(is_image_query, value[:, :, width - length :], 0)  # [B, H, T, E]
    return (weights @ value + own).transpose(1, 2).contiguous(), None


def _softmax(scores: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Softmax over the visible keys; a row without any is zero, and so is its gradient."""
    hidden = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    return torch.where(visible, hidden.softmax(-1), 0)


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """A mask that is always explicit: without one, attention would not know its padding."""
    mask: torch.Tensor | None = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
    return mask


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, _mask)
