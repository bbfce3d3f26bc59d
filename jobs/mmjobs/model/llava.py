"""The assembled network: a LLaVA, or one with another projector or another attention."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration

from mmjobs.model import mmca
from mmjobs.model.projectors import PROJECTORS
from mmjobs.model.projectors.widths import Widths


class AssembledConfig(LlavaConfig):
    """A LLaVA that transformers alone does not know: `projector` and `attention` differ from the usual ones."""

    model_type = "mmlaunch_llava"

    projector: str = "mlp"
    queries: int | None = None
    attention: str = "plain"


class Assembled(LlavaForConditionalGeneration):
    """CLIP, the projector of a recipe and a LLaMA. Where both choices are LLaVA's own, the parent class serves."""

    config_class = AssembledConfig

    def __init__(self, config: AssembledConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = PROJECTORS[config.projector].build(widths(config))
        if config.attention == "mmca":
            text: Any = config.text_config
            text._attn_implementation = mmca.NAME
            self.model.register_forward_pre_hook(_tell_images, with_kwargs=True)


def _tell_images(model: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The keys that are images, [B, S]: those in the cache, and those of this call."""
    ids = named.get("input_ids")
    if ids is None:
        raise TypeError("mmca tells images from text by their token ids, not by embeddings")
    images = ids == cast(Any, model).config.image_token_id
    if (cache := named.get("past_key_values")) is not None:
        before = getattr(cache, "images", None)
        images = images if before is None else torch.cat([before, images], dim=1)
        cache.images = images
    return given, {**named, "images": images}


AutoConfig.register(AssembledConfig.model_type, AssembledConfig)
AutoModelForImageTextToText.register(AssembledConfig, Assembled)


def network_class(config: LlavaConfig) -> type[LlavaForConditionalGeneration]:
    """The class that a configuration asks for."""
    return Assembled if isinstance(config, AssembledConfig) else LlavaForConditionalGeneration


def widths(config: Any) -> Widths:
    """The widths that the projector of a configuration connects."""
    vision, language = config.vision_config, config.text_config
    return Widths(
        vision=vision.hidden_size,
        language=language.hidden_size,
        side=vision.image_size // vision.patch_size,
        class_token=config.vision_feature_select_strategy == "full",
        queries=getattr(config, "queries", None),
        vision_heads=vision.num_attention_heads,
    )


def features(config: Any) -> int:
    """How many features, and so how many tokens, one square of pixels has."""
    return PROJECTORS[getattr(config, "projector", "mlp")].features(widths(config))


def initialise(projector: nn.Module, std: float) -> nn.Module:
    """New weights that keep the scale of activations."""
    for module in projector.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
    return projector
