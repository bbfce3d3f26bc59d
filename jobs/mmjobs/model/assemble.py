"""A model put together from parts: a CLIP encoder, a projector and a LLaMA, joined as a LLaVA; or a LLaMA alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from mmjobs.data.chat import Chat, own_template
from mmjobs.data.images.preprocess import Blind, Pixels, Squares
from mmjobs.model import llava, mmca, preprocessor, random, tokens, trees
from mmjobs.model.names import opening, weights
from mmjobs.model.parts import dtype_of
from mmjobs.model.projectors import PROJECTORS
from mmjobs.model.sharded import undivided, whole
from mmlaunch.errors import BadInput
from mmlaunch.recipe.model import Language, Model, RandomLanguage, RandomVision, Vision

Made = tuple[PreTrainedModel, Chat, Pixels, int, Any]


def assemble(model: Model, precision: str, empty: bool) -> Made:
    """The parts of a recipe as one network, its chat, its pixels, its longest sequence and its processor.

    The weights of an `empty` one come from elsewhere; it is not worth reading those of its parts. Without a vision
    encoder the network is the language model alone.
    """
    if model.language is None:
        raise BadInput("model: names no language model; write language: meta-llama/Meta-Llama-3-8B-Instruct")
    tokenizer = _tokenizer(model, model.language)
    tower = _vision(model.vision, dtype_of("vision", model, precision), empty) if model.vision else None
    language = _language(model.language, tokenizer, dtype_of("language", model, precision), empty)
    language.config.attention_dropout = model.dropout
    for layer in language.model.layers:
        layer.self_attn.attention_dropout = model.dropout
    tokens.fit(language, tokenizer)
    positions = language.config.max_position_embeddings
    if model.vision is None or tower is None:
        return _speaking(language, Chat(tokenizer, None)), Chat(tokenizer, None), Blind(), positions, tokenizer
    config = _config(model, tower.config, language.config, tokens.id_of(tokenizer, tokens.IMAGE))
    network = _joined(config, tower, language)
    features = llava.features(config)
    _check_features(network, features)
    shipped = preprocessor.shipped(model.vision)
    tiling = preprocessor.tiling(model.tiling, shipped, tower.config.image_size)
    mean, std = preprocessor.colours(shipped)
    pixels = Squares(tower.config.image_size, features, config.image_token_id, tiling, mean, std)
    tower.register_forward_pre_hook(partial(_normalise, pixels))
    chat = Chat(tokenizer, tokens.IMAGE)
    processor = preprocessor.served(pixels, tokenizer, tower.config.patch_size)
    return _speaking(network, chat), chat, pixels, positions, processor


def _speaking(network: Any, chat: Chat) -> Any:
    """The network, which knows from now on how answers begin and end."""
    network.generation_config.eos_token_id = sorted({chat.end_id, chat.tokenizer.eos_token_id})
    network.generation_config.pad_token_id = chat.tokenizer.pad_token_id
    network.generation_config.bos_token_id = chat.tokenizer.bos_token_id
    return network


def _normalise(pixels: Squares, tower: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Normalise bytes, which come from our own loader; other numbers are normalised already."""
    return (pixels.normal(given[0]), *given[1:]) if given and given[0].dtype == torch.uint8 else given


def _tokenizer(model: Model, language: Language) -> Any:
    tokenizer: Any
    if language.path is None:
        tokenizer = tokens.byte_tokenizer()
        tokenizer.chat_template = own_template("plain")
    else:
        with opening("model.language", language.path):
            tokenizer = AutoTokenizer.from_pretrained(language.path)
    tokens.complete(tokenizer, sees=model.vision is not None)
    if model.chat_template != "processor":
        tokenizer.chat_template = own_template(model.chat_template)
    return tokenizer


def _vision(vision: Vision, dtype: torch.dtype, empty: bool) -> Any:
    if vision.path is None:
        tower: Any = CLIPVisionModel(random.vision(vision.random or RandomVision()))
        return tower.to(dtype)
    with opening("model.vision", vision.path):
        config = CLIPVisionConfig.from_pretrained(vision.path)
        return weights(CLIPVisionModel, vision.path, config, empty, dtype)


def _language(language: Language, tokenizer: Any, dtype: torch.dtype, empty: bool) -> Any:
    if language.path is None:
        network: Any = LlamaForCausalLM(random.language(language.random or RandomLanguage(), tokenizer))
        return network.to(dtype)
    with opening("model.language", language.path):
        config = AutoConfig.from_pretrained(language.path)
        return weights(AutoModelForCausalLM, language.path, config, empty, dtype)


def _config(model: Model, vision: CLIPVisionConfig, language: Any, image_id: int) -> LlavaConfig:
    """LLaVA's own configuration where LLaVA knows the projector and the attention; ours otherwise."""
    assert model.vision is not None
    values: dict[str, Any] = {
        "vision_config": vision,
        "text_config": language,
        "image_token_index": image_id,
        "vision_feature_select_strategy": "full" if model.vision.keep_class_token else "default",
        "vision_feature_layer": feature_layer(model.vision, vision.num_hidden_layers),
        "tie_word_embeddings": language.tie_word_embeddings,
    }
    if model.projector.kind == "mlp" and model.attention == "plain":
        config = LlavaConfig(**values)
    else:
        own: dict[str, Any] = {
            "projector": model.projector.kind,
            "queries": model.projector.queries,
            "attention": model.attention,
        }
        config = llava.AssembledConfig(**values, **own)
    config.image_seq_length = llava.features(config)
    return config


def _joined(config: LlavaConfig, tower: Any, language: Any) -> LlavaForConditionalGeneration:
    """The parts moved into a LLaVA without weights of its own, so that no weight is in memory twice."""
    with torch.device("meta"), undivided():
        network = llava.network_class(config)(config)
    network.model.vision_tower = tower
    network.model.language_model = language.model
    network.lm_head = language.lm_head
    network.model.multi_modal_projector = _projector(config).to(language.lm_head.weight.dtype)
    network.generation_config = language.generation_config
    if isinstance(config, llava.AssembledConfig) and config.attention == "mmca":
        if not trees.plain(language.model.config):
            kind = language.model.config.model_type
            what = f"mmca knows no windows and no caps, which this language model ({kind}) may have"
            raise BadInput(f"model.attention: {what}; write plain")
        language.model.config._attn_implementation = mmca.NAME
    return network


def _projector(config: LlavaConfig) -> nn.Module:
    kind = getattr(config, "projector", "mlp")
    language: Any = config.text_config
    return llava.initialise(PROJECTORS[kind].build(llava.widths(config)), random.init_std(language.hidden_size))


def feature_layer(vision: Vision, layers: int) -> int:
    """The hidden layer that is projected, counted from the end as transformers does."""
    if not -(layers + 1) <= vision.feature_layer <= layers:
        what = f"layer {vision.feature_layer} does not exist: there are {layers} layers and the embeddings"
        raise BadInput(f"model.vision.feature_layer: {what}; write a number from {-layers - 1} to -1")
    return vision.feature_layer if vision.feature_layer < 0 else vision.feature_layer - layers - 1


def _check_features(network: LlavaForConditionalGeneration, expected: int) -> None:
    """Check that prompts hold as many image tokens as the tower and the projector give features."""
    config: Any = network.config
    side, some = config.vision_config.image_size, next(network.model.vision_tower.parameters())
    blank = torch.zeros(1, 3, side, side, dtype=some.dtype, device=some.device)
    with torch.no_grad(), whole(network.model.vision_tower.parameters()):
        hidden = network.model.vision_tower(blank, output_hidden_states=True).hidden_states[config.vision_feature_layer]
        chosen = hidden if config.vision_feature_select_strategy == "full" else hidden[:, 1:]
        projector = network.model.multi_modal_projector
        found = projector(chosen.to(next(projector.parameters()).dtype)).shape[1]
    if found != expected:
        raise BadInput(f"model: an image has {found} features, and its prompt {expected} image tokens")
