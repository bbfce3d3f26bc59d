"""Models with random weights, for tests and for the quickstart: their shapes, and a scale that suits small widths."""

from __future__ import annotations

import math

from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

from mmlaunch.recipe.model import RandomLanguage, RandomVision


def vision(shape: RandomVision) -> CLIPVisionConfig:
    """A CLIP encoder of this shape."""
    return CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        projection_dim=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        image_size=shape.image_size,
        patch_size=shape.patch,
        initializer_range=init_std(shape.width),
    )


def language(shape: RandomLanguage, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """A LLaMA of this shape for the words of this tokenizer."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=8 * shape.width // 3,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.max_positions,
        initializer_range=init_std(shape.width),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def init_std(width: int) -> float:
    """1/sqrt(width), which keeps the scale of activations; the usual 0.02 fits widths of thousands only."""
    return 1 / math.sqrt(width)
