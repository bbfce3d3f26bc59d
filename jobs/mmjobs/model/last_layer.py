"""The last layer: what follows its attention is computed only for the tokens whose hidden states are used.

The keys and values of every token are needed, its MLP is not: nobody uses the last hidden states of prompts and images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer


class _Read:
    """A layer that computes the tokens in `read`, which are places in the flattened rows."""

    def forward(self: Any, hidden_states: torch.Tensor, read: torch.Tensor | None = None, **named: Any) -> torch.Tensor:
        """[B, T, D] -> [U, D], or [B, T, D] where all are read."""
        if read is None:
            # The family stands behind this class only where both are put together below: mypy cannot see it here.
            return super().forward(hidden_states, **named)  # type: ignore[misc, no-any-return]
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **named)
        selected: torch.Tensor = (hidden_states + attended).flatten(0, 1)[read]
        update: torch.Tensor = self.mlp(self.post_attention_layernorm(selected))
        return selected + update


_READ: dict[type[nn.Module], type[nn.Module]] = {
    family: type(family.__name__, (_Read, family), {})
    for family in (GemmaDecoderLayer, LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer)
}


def use(network: Any) -> None:
    """For families whose layers are an attention and an MLP, each after its norm; others compute all tokens."""
    last = _last(network)
    last.__class__ = _READ.get(type(last), type(last))  # in its place: hooks and names stay


def arguments(network: Any, read: torch.Tensor) -> dict[str, Any]:
    """The argument that tells a network which tokens are read; nothing where it computes all of them."""
    return {"read": read} if isinstance(_last(network), _Read) else {}


def _last(network: Any) -> nn.Module:
    last: nn.Module = network.get_decoder().layers[-1]
    return last
