"""The `mlp` projector: LLaVA's two layers with a GELU between them."""

from __future__ import annotations

from torch import nn
from transformers import LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector


def build(config: LlavaConfig) -> nn.Module:
    """transformers' own module, so that the whole is a LLaVA to everybody who loads it."""
    return LlavaMultiModalProjector(config)
