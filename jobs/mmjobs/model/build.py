"""The model of a recipe: its network, and how conversations and images become its inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from mmjobs.data.chat import OWN, Chat, own_template
from mmjobs.data.images.preprocess import Pixels
from mmjobs.model import adapters, assemble, heads, last_layer, liger, log_probs, parts, pretrained, trees, weights
from mmlaunch.errors import BadInput
from mmlaunch.recipe.model import Model

_LOOKS_BACK = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True)
class BuiltModel:
    """A network, and how its data are tokenised and preprocessed."""

    network: PreTrainedModel
    chat: Chat
    pixels: Pixels
    positions: int
    """The longest sequence that the language model has positions for."""
    processor: Any
    """transformers' processor for the same data, which is saved with the weights."""

    @property
    def branches(self) -> bool:
        """Whether several answers can stand behind one prompt; otherwise each has a row of its own."""
        return trees.kind(self.network) is not None

    def longest(self, max_tokens: int) -> int:
        """The longest example that is used, in tokens: what the recipe allows, or the model."""
        return min(max_tokens, self.positions)

    @property
    def cannot_pack(self) -> str | None:
        """Why positions alone cannot separate several sequences in a row; None where they can."""
        text = self.network.config.get_text_config()
        if "mrope_section" in (getattr(text, "rope_parameters", None) or {}):
            return "this model places its tokens in two dimensions, and packed rows have one"
        if not set(getattr(text, "layer_types", None) or ()) <= _LOOKS_BACK:
            return "some layers of this model carry on what they have read, and do not see where an example begins"
        return None

    @property
    def same_up_to(self) -> int | None:
        """The longest example that the model reads in the same way beside longer ones in its batch; None: any."""
        text = self.network.config.get_text_config()
        rope = getattr(text, "rope_parameters", None) or {}
        if rope.get("rope_type") != "longrope":
            return None
        return int(rope.get("original_max_position_embeddings") or text.original_max_position_embeddings)


def build(model: Model, precision: str = "fp32", scoring_head: bool = False) -> BuiltModel:
    """The model that a recipe describes, with its initial weights; random ones come from torch's random state.

    With a `scoring_head` it gives each answer a number, and no token a probability.
    """
    built = skeleton(model, precision, empty=model.init_from is not None)
    torch.manual_seed(torch.initial_seed())  # reading weights draws more or fewer random numbers, divided or whole
    if scoring_head:
        heads.add_score(built.network)
    if model.init_from is not None:
        weights.start_from(built.network, model.init_from, build)
    adapters.add(built.network, model)
    parts.freeze(built.network, model, precision)
    if model.train.vision != "frozen" and built.chat.image_token is None:
        raise BadInput("model.train.vision: this model has no vision encoder; remove it")
    if scoring_head:
        heads.freeze_vocabulary_head(built.network)
    if model.activation_checkpointing == "on":
        built.network.activation_checkpointing_enable()
        built.network.enable_input_require_grads()  # frozen embeddings have no gradient, and the graph would end there
    return built


def skeleton(model: Model, precision: str, empty: bool) -> BuiltModel:
    """The model without what training adds to it; `empty`: its weights are loaded later."""
    make = pretrained.load if model.pretrained else assemble.assemble
    built = BuiltModel(*make(model, precision, empty))
    _check_layers(built.network)
    if model.liger:
        liger.use(built.network)
    trees.use(built.network)
    log_probs.use(built.network)
    last_layer.use(built.network)
    _check_words(built.chat, model.chat_template)
    return built


def _check_layers(network: Any) -> None:
    """Refuse models with other names for their parts, as some older families have."""
    if not hasattr(network, "model") or not hasattr(network.get_decoder(), "layers"):
        what = f"models of type {network.config.model_type} are laid out otherwise than those that can be trained here"
        raise BadInput(f"model.pretrained: {what}; choose one of the LLaMA, Mistral, Qwen or Gemma families")


def _check_words(chat: Chat, template: str) -> None:
    """Refuse a template whose special tokens the tokenizer lacks: they would become ordinary letters."""
    words = re.findall(r"<\|\w+\|>", own_template(template)) if template in OWN else []
    known = {token.content for token in chat.tokenizer.added_tokens_decoder.values()}
    if missing := sorted(set(words) - known):
        what = f"{template} is written with {', '.join(missing)}, which this tokenizer does not know"
        raise BadInput(f"model.chat_template: {what}; choose the one that the language model was trained with")
