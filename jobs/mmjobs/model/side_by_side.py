"""Attention over sequences that stand side by side in a packed row: each on its own, at the cost of its own length.

A mask over the whole row would be right as well, and would compute what it then hides: for rows of n sequences, n times
the work. Where lengths are not given, this is transformers' own attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "side_by_side"


def use(network: Any) -> None:
    """For a LLaMA, alone or in a LLaVA; the attention of other families has windows and caps of its own."""
    text = network.get_decoder().config
    if text.model_type == "llama" and text._attn_implementation == "sdpa":
        text._attn_implementation = NAME


def arguments(network: nn.Module, lengths: Sequence[int] | None) -> dict[str, Any]:
    """What a network with this attention wants to know of a packed row."""
    decoder: Any = network
    known = lengths is not None and decoder.get_decoder().config._attn_implementation == NAME
    return {"lengths": tuple(lengths)} if known and lengths is not None else {}


def attention(
    module: nn.Module,
    query: torch.Tensor,  # [1, H, T, E]
    key: torch.Tensor,  # [1, G, T, E], G heads that H / G query heads share
    value: torch.Tensor,  # [1, G, T, E]
    attention_mask: torch.Tensor | None,
    lengths: Sequence[int] | None = None,  # they add up to T
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """[1, T, H, E]"""
    if lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    sizes = list(lengths)
    parts = zip(*(torch.split(states, sizes, 2) for states in (query, key, value)), strict=True)
    each = [sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in parts]
    return torch.cat(each, 1), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
