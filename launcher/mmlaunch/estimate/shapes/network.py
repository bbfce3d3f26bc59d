"""The shapes of a recipe's network: assembled from parts, or a whole pretrained model of a known family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmlaunch.estimate.shapes import projector
from mmlaunch.estimate.shapes.configs import UnknownShapes, config_of, grown
from mmlaunch.estimate.shapes.language import Decoder, decoder_of
from mmlaunch.estimate.shapes.projector import Between
from mmlaunch.estimate.shapes.vision import Encoder, encoder_of
from mmlaunch.estimate.shapes.weights import Weight
from mmlaunch.recipe.model import Language, Model, RandomLanguage, RandomVision, Tiling, Vision

_BYTES = 260  # words of the byte tokenizer: every byte, begin, end, pad and image
_FAMILIES = ("llava", "llava_next", "internvl", "idefics2", "qwen2_vl", "qwen2_5_vl")
_TIED = {"internvl": True}  # where a config.json does not say; all others mean that it is not


@dataclass(frozen=True)
class Network:
    """Every weight by name, and the sizes that activations depend on."""

    weights: tuple[Weight, ...]
    language: Decoder
    vision: Encoder | None = None
    features: int = 0
    """Tokens of one square of pixels."""
    squares: int = 1
    """The most squares that one image becomes."""
    used: int | None = None
    """Layers of the encoder up to the one that is projected, where the rest is idle and can be left untrained."""
    class_token: bool = False
    """Whether the projector reads the class token."""

    @property
    def tokens(self) -> int:
        """The most tokens of one image."""
        return self.features * self.squares


def network_of(model: Model) -> Network:
    """The shapes of a recipe's model; raises `UnknownShapes` if they are not known on this machine."""
    try:
        return _pretrained(model) if model.pretrained else _assembled(model)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        what = f"a config.json or a tokenizer.json is not what transformers writes: {type(error).__name__}: {error}"
        raise UnknownShapes(f"model: {what}") from None


def _assembled(model: Model) -> Network:
    assert model.language is not None  # the recipe was validated
    language = _language(model.language)
    weights = [*language.weights("model.language_model")]
    if model.vision is None:
        return Network(tuple(weights), language)
    vision = _vision(model.vision)
    layer = model.vision.feature_layer
    used = layer if layer >= 0 else vision.layers + 1 + layer
    kept = model.vision.keep_class_token
    between = Between(vision.width, language.width, vision.side, kept, model.projector.queries)
    weights += [*vision.weights("model.vision_tower")]
    weights += [*projector.weights(model.projector.kind, between, "model.multi_modal_projector")]
    features = projector.features(model.projector.kind, between)
    return Network(tuple(weights), language, vision, features, _squares(model.tiling), used, kept)


def _language(language: Language) -> Decoder:
    if language.path is None:
        shape = language.random or RandomLanguage()
        head = shape.width // shape.heads
        inner = 8 * shape.width // 3
        return Decoder(shape.width, inner, shape.layers, shape.heads, shape.heads, head, _BYTES, shape.max_positions)
    decoder = decoder_of(config_of(language.path, "model.language"), "model.language")
    return decoder.with_words(grown(decoder.words, language.path))


def _vision(vision: Vision) -> Encoder:
    if vision.path is None:
        shape = vision.random or RandomVision()
        inner = 4 * shape.width
        kind = "clip_vision_model"
        return Encoder(kind, shape.width, inner, shape.layers, shape.heads, shape.image_size, shape.patch, {})
    return encoder_of(config_of(vision.path, "model.vision"), "model.vision")


def _squares(tiling: Tiling) -> int:
    if tiling.kind != "dynamic":
        return 1
    return tiling.max_tiles + (tiling.thumbnail and tiling.max_tiles > 1)


def _pretrained(model: Model) -> Network:
    field = "model.pretrained"
    config = config_of(str(model.pretrained), field)
    kind = str(config.get("model_type"))
    if "vision_config" not in config:
        language = decoder_of(config, field)
        return Network((*language.weights("model"),), language)
    if kind not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise UnknownShapes(f"{field}: the shapes of a {kind!r} are not known here (known: {known}, and text models)")
    text, seen = _parts(config, kind)
    language, vision = decoder_of(text, field), encoder_of(seen, field)
    body = "model.text_model" if kind == "idefics2" else "model.language_model"
    tower = {"idefics2": "model.vision_model"}.get(kind, "model.visual" if "qwen" in kind else "model.vision_tower")
    weights = [*vision.weights(tower), *language.weights(body)]
    if kind.startswith("qwen"):
        weights += projector.of_qwen(vision, language, f"{tower}.merger")
        merged = (vision.side // int(vision.options["spatial_merge_size"])) ** 2
        return Network(tuple(weights), language, vision, merged)
    if kind == "idefics2":
        weights += projector.of_idefics2(config, vision, language, "model.connector")
        latents = int((config.get("perceiver_config") or {}).get("resampler_n_latents", 64))
        return Network(tuple(weights), language, vision, latents)
    at = "model.multi_modal_projector"
    if kind == "internvl":
        factor = int(1 / config.get("downsample_ratio", 0.5))
        weights += projector.of_internvl(vision, language, factor, at)
        return Network(tuple(weights), language, vision, (vision.side // factor) ** 2, _squares(Tiling(kind="dynamic")))
    weights += projector.of_llava(config, vision, language, at)
    if kind == "llava_next":
        weights.append(Weight("model.image_newline", language.width))
    layer = config.get("vision_feature_layer", -2)
    used = (layer if layer >= 0 else vision.layers + 1 + layer) if isinstance(layer, int) else None
    kept = config.get("vision_feature_select_strategy", "default") == "full"
    squares = 5 if kind == "llava_next" else 1  # four tiles and the whole
    return Network(tuple(weights), language, vision, vision.side**2 + kept, squares, used, kept)


def _parts(config: Mapping[str, Any], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The halves of an image-text model's configuration, each with its `model_type`."""
    text = dict(config.get("text_config") or config)  # Qwen's files hold the language model's keys at the top
    defaults = {
        "llava": ("llama", "clip_vision_model"), "llava_next": ("llama", "clip_vision_model"),
        "internvl": ("qwen2", "internvl_vision"), "idefics2": ("mistral", "idefics2_vision"),
    }  # fmt: skip
    of_text, of_vision = defaults.get(kind, (f"{kind}_text", f"{kind}_vision"))
    if kind in ("idefics2", "qwen2_vl", "qwen2_5_vl"):
        text["model_type"] = of_text if kind != "idefics2" else text.get("model_type", of_text)
    text.setdefault("model_type", of_text)
    text["tie_word_embeddings"] = config.get("tie_word_embeddings", _TIED.get(kind, False))
    vision = dict(config["vision_config"])
    if kind not in ("llava", "llava_next") or "model_type" not in vision:
        vision["model_type"] = of_vision
    return text, vision
