"""Projectors: the names and sizes of their weights, and how many features they make of a square of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmlaunch.estimate.shapes.language import Decoder
from mmlaunch.estimate.shapes.vision import Encoder
from mmlaunch.estimate.shapes.weights import Weights, linear, norm, tensor

QUERIES = 256
"""The number of queries of a perceiver if the recipe names none."""


@dataclass(frozen=True)
class Between:
    """The sizes on both sides of a projector."""

    vision: int
    language: int
    side: int
    """Patches along each side of a square."""
    class_token: bool = False
    queries: int | None = None

    @property
    def features(self) -> int:
        return self.side**2 + self.class_token


def weights(kind: str, sizes: Between, at: str) -> Weights:
    """The projectors that a recipe can name. One whose shapes are not written here counts as an `mlp`."""
    shapes = {"linear": _linear, "mlp": _mlp, "vit": _vit, "perceiver": _perceiver, "pixel_shuffle": _shuffle}
    yield from shapes.get(kind, _mlp)(sizes, at)


def features(kind: str, sizes: Between) -> int:
    """How many features, and so how many tokens, one square has."""
    if kind == "perceiver":
        return sizes.queries or QUERIES
    return (sizes.side // 2) ** 2 if kind == "pixel_shuffle" else sizes.features


def _linear(sizes: Between, at: str) -> Weights:
    yield from linear(f"{at}.linear", sizes.vision, sizes.language)
    yield from norm(f"{at}.norm", sizes.language)


def _mlp(sizes: Between, at: str) -> Weights:
    yield from linear(f"{at}.linear_1", sizes.vision, sizes.language)
    yield from linear(f"{at}.linear_2", sizes.language, sizes.language)


def _vit(sizes: Between, at: str) -> Weights:
    yield from _attention(f"{at}.layer.self_attn", sizes.vision)
    yield from linear(f"{at}.layer.linear1", sizes.vision, 4 * sizes.vision)
    yield from linear(f"{at}.layer.linear2", 4 * sizes.vision, sizes.vision)
    yield from norm(f"{at}.layer.norm1", sizes.vision)
    yield from norm(f"{at}.layer.norm2", sizes.vision)
    yield from _linear(sizes, f"{at}.project")


def _perceiver(sizes: Between, at: str) -> Weights:
    yield tensor(f"{at}.queries", sizes.queries or QUERIES, sizes.language)
    yield from linear(f"{at}.keys", sizes.vision, sizes.language)
    yield from _attention(f"{at}.attention", sizes.language)
    for name in ("keys_norm", "queries_norm", "norm"):
        yield from norm(f"{at}.{name}", sizes.language)
    yield from linear(f"{at}.project", sizes.language, sizes.language)


def _shuffle(sizes: Between, at: str) -> Weights:
    yield from norm(f"{at}.norm", 4 * sizes.vision)
    yield from linear(f"{at}.linear_1", 4 * sizes.vision, sizes.language)
    yield from linear(f"{at}.linear_2", sizes.language, sizes.language)


def _attention(at: str, width: int) -> Weights:
    """torch's own multi-head attention."""
    yield tensor(f"{at}.in_proj_weight", 3 * width, width)
    yield tensor(f"{at}.in_proj_bias", 3 * width)
    yield from linear(f"{at}.out_proj", width, width)


def of_llava(config: Mapping[str, Any], vision: Encoder, language: Decoder, at: str) -> Weights:
    """LLaVA's and LLaVA-NeXT's: as wide as the hidden layers that it reads side by side."""
    layers = config.get("vision_feature_layer", -2)
    read = len(layers) if isinstance(layers, list) else 1
    bias = bool(config.get("multimodal_projector_bias", True))
    yield from linear(f"{at}.linear_1", read * vision.width, language.width, bias)
    yield from linear(f"{at}.linear_2", language.width, language.width, bias)


def of_internvl(vision: Encoder, language: Decoder, factor: int, at: str) -> Weights:
    """InternVL's pixel shuffle, with the names that transformers gives it."""
    joined = vision.width * factor**2
    yield from norm(f"{at}.layer_norm", joined)
    yield from linear(f"{at}.linear_1", joined, language.width)
    yield from linear(f"{at}.linear_2", language.width, language.width)


def of_idefics2(config: Mapping[str, Any], vision: Encoder, language: Decoder, at: str) -> Weights:
    """A gated MLP to the language model's width, and a resampler with a few learned latents."""
    perceiver: dict[str, Any] = dict(config.get("perceiver_config") or {})
    width = language.width  # transformers takes the language model's, whatever stands in the file
    head, heads = perceiver.get("resampler_head_dim", 96), perceiver.get("resampler_n_heads", 16)
    queries, keys = heads * head, perceiver.get("num_key_value_heads", 4) * head
    for name in ("gate_proj", "up_proj"):
        yield from linear(f"{at}.modality_projection.{name}", vision.width, language.inner, False)
    yield from linear(f"{at}.modality_projection.down_proj", language.inner, width, False)
    at = f"{at}.perceiver_resampler"
    yield tensor(f"{at}.latents", perceiver.get("resampler_n_latents", 64), width)
    for layer in (f"{at}.layers.{number}" for number in range(perceiver.get("resampler_depth", 3))):
        for name in ("input_latents_norm", "input_context_norm", "post_attention_layernorm"):
            yield from norm(f"{layer}.{name}", width, bias=False)
        for name, outputs in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield from linear(f"{layer}.self_attn.{name}", width, outputs, False)
        yield from linear(f"{layer}.self_attn.o_proj", queries, width, False)
        for name in ("gate_proj", "up_proj"):
            yield from linear(f"{layer}.mlp.{name}", width, 4 * width, False)
        yield from linear(f"{layer}.mlp.down_proj", 4 * width, width, False)
    yield from norm(f"{at}.norm", width, bias=False)


def of_qwen(vision: Encoder, language: Decoder, at: str) -> Weights:
    """The merger at the end of Qwen's encoder: squares of patches through two layers."""
    joined = vision.width * int(vision.options["spatial_merge_size"]) ** 2
    yield from norm(f"{at}.ln_q", vision.width, vision.norm_bias)
    yield from linear(f"{at}.mlp.0", joined, joined)
    yield from linear(f"{at}.mlp.2", joined, language.width)
