"""The model of a recipe: a CLIP encoder, a projector and a LLaMA with random weights, joined as a LLaVA."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from mmjobs.model import tokens
from mmjobs.model.projectors import PROJECTORS
from mmlaunch.errors import BadInput
from mmlaunch.recipe.model import Model, RandomLanguage, RandomVision, Vision


@dataclass(frozen=True)
class Built:
    """A model, and what its data must look like."""

    network: LlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast
    image_side: int
    image_tokens: int
    positions: int


def build(model: Model) -> Built:
    """The model that a recipe describes; its weights come from torch's current random state."""
    if model.vision is None or model.vision.random is None or model.language is None or model.language.random is None:
        raise BadInput("model: this trainer builds random vision and language models only; write random: {width: 96}")
    tokenizer = tokens.byte_tokenizer()
    vision, language = model.vision.random, model.language.random
    kept = bool(model.vision.keep_class_token)
    image_tokens = (vision.image_size // vision.patch) ** 2 + kept
    config = LlavaConfig(
        vision_config=_vision(vision),
        text_config=_language(language, tokenizer, model.dropout),
        image_token_index=tokens.id_of(tokenizer, tokens.IMAGE),
        image_seq_length=image_tokens,
        vision_feature_select_strategy="full" if kept else "default",
        vision_feature_layer=feature_layer(model.vision, vision.layers),
    )
    network = LlavaForConditionalGeneration(config)
    projector = PROJECTORS[model.projector.kind](config)
    network.model.multi_modal_projector = _initialised(projector, _spread(language.width))
    _check_features(network, vision.image_size, image_tokens)
    return Built(network, tokenizer, vision.image_size, image_tokens, language.max_positions)


def _check_features(network: LlavaForConditionalGeneration, side: int, image_tokens: int) -> None:
    """Prompts hold as many image tokens as the tower and the projector really give features."""
    with torch.no_grad():
        features = network.get_image_features(torch.zeros(1, 3, side, side)).pooler_output  # of each image: [P, D]
    if len(features[0]) != image_tokens:
        raise BadInput(f"model: an image has {len(features[0])} features, and its prompt {image_tokens} image tokens")


def feature_layer(vision: Vision, layers: int) -> int:
    """The hidden layer that is projected, counted from the end as transformers likes it."""
    if not -(layers + 1) <= vision.feature_layer <= layers:
        what = f"layer {vision.feature_layer} does not exist: there are {layers} layers and the embeddings"
        raise BadInput(f"model.vision.feature_layer: {what}; write a number from {-layers - 1} to -1")
    return vision.feature_layer if vision.feature_layer < 0 else vision.feature_layer - layers - 1


def _vision(shape: RandomVision) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        projection_dim=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        image_size=shape.image_size,
        patch_size=shape.patch,
        initializer_range=_spread(shape.width),
    )


def _language(shape: RandomLanguage, tokenizer: PreTrainedTokenizerFast, dropout: float) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=8 * shape.width // 3,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.max_positions,
        attention_dropout=dropout,
        initializer_range=_spread(shape.width),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _spread(width: int) -> float:
    """1/sqrt(width), which keeps the scale of what passes through; the usual 0.02 fits widths of thousands only."""
    return 1 / math.sqrt(width)


def _initialised(projector: nn.Module, spread: float) -> nn.Module:
    for module in projector.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=spread)
            nn.init.zeros_(module.bias)
    return projector
