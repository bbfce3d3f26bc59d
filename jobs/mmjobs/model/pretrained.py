"""A whole model that transformers knows: image-text models with their own processor, and text models."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import signature
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils.import_utils import is_torchvision_available

from mmjobs.data.chat import Chat, own_template
from mmjobs.data.images.preprocess import Blind, Pixels, Processed
from mmjobs.model import llava, tokens
from mmjobs.model.adapters import add_saved
from mmjobs.model.names import opening, weights
from mmjobs.model.parts import dtype_of
from mmlaunch.errors import BadInput
from mmlaunch.recipe.model import Model

Made = tuple[PreTrainedModel, Chat, Pixels, int, Any]


def load(model: Model, precision: str, empty: bool) -> Made:
    """The model, its chat, its pixels, its longest sequence and its processor."""
    name = str(model.pretrained)
    trusted = {"trust_remote_code": model.remote_code != "refuse"}
    dtype = dtype_of("language", model, precision)
    with opening("model.pretrained", name):
        config = AutoConfig.from_pretrained(name, **trusted)
        _keep_all(config)
        sees = sees_images(config)
        kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        network: Any = weights(kind, name, config, empty, dtype, **trusted)
        if not empty:
            add_saved(network, Path(name))
        processor: Any = (_processor_class(config) if sees else AutoTokenizer).from_pretrained(name, **trusted)
    tokenizer = processor.tokenizer if sees else processor
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # no row is needed: masks come from lengths, never from ids
    template = processor.chat_template if sees and processor.chat_template else tokenizer.chat_template
    tokenizer.chat_template = template if model.chat_template == "processor" else own_template(model.chat_template)
    _drop_attention(network, model.dropout)
    text = config.get_text_config()
    if getattr(text, "output_router_logits", False):
        what = "its config.json asks for a loss of the router (output_router_logits), and none is added here"
        raise BadInput(f"model.pretrained: {what}; write false there")
    if not sees:
        return network, Chat(tokenizer, None), Blind(), text.max_position_embeddings, tokenizer
    processor.chat_template = tokenizer.chat_template
    chat = Chat(tokenizer, processor.image_token)
    if model.chat_template != "processor" and processor.image_token != tokens.IMAGE:
        what = f"this model's images are {processor.image_token!r} in a text, and {model.chat_template} writes <image>"
        raise BadInput(f"model.chat_template: {what}; write processor")
    pixels = Processed(processor, set(signature(type(network).forward).parameters))
    pixels.check()
    return network, chat, pixels, text.max_position_embeddings, processor


def sees_images(config: Any) -> bool:
    """Whether a configuration is that of an image-text model."""
    own = (llava.AssembledConfig.model_type,)
    return config.model_type in (*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *own) and hasattr(config, "vision_config")


def _processor_class(config: Any) -> Any:
    """The processor of a model; without torchvision, which only videos need, one for images alone."""
    kind: Any = PROCESSOR_MAPPING.get(type(config), None)
    if kind is None or is_torchvision_available() or "video_processor" not in kind.get_attributes():
        return AutoProcessor
    return still(kind)


def still(kind: Any) -> Any:
    """A processor class without its half for videos."""
    attributes = [name for name in kind.get_attributes() if name != "video_processor"]
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _: attributes)})


def _keep_all(config: Any) -> None:
    """Use the recipe's dropout alone: some checkpoints still have the one that they were trained with."""
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            _keep_all(value)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)


def _drop_attention(network: PreTrainedModel, dropout: float) -> None:
    """Set it in the language model alone: other parts have attention too."""
    decoder: Any = network.get_decoder()
    modules: Iterable[Any] = decoder.modules() if dropout else ()
    for module in modules:
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout
