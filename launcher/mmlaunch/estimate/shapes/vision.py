"""Vision encoders: their sizes out of a config.json, and the names and sizes of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmlaunch.estimate.shapes.configs import UnknownShapes
from mmlaunch.estimate.shapes.weights import Weights, linear, norm, tensor

_CLIP = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32,
}  # fmt: skip
_QWEN = {
    "hidden_size": 3584, "embed_dim": 1280, "mlp_ratio": 4, "depth": 32, "num_heads": 16, "patch_size": 14,
    "temporal_patch_size": 2, "spatial_merge_size": 2, "image_size": 896,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": _CLIP,
    "siglip_vision_model": {**_CLIP, "patch_size": 16, "vision_use_head": True},
    "idefics2_vision": _CLIP,
    "internvl_vision": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 448, "patch_size": 14, "norm_type": "layer_norm",
    },
    "qwen2_vl_vision": _QWEN,
    "qwen2_5_vl_vision": {**_QWEN, "intermediate_size": 3420, "out_hidden_size": 3584},
}  # fmt: skip
"""The default of each key that a config.json may leave out. Qwen takes images of any size: here 896 x 896."""


@dataclass(frozen=True)
class Encoder:
    """The sizes of a vision encoder."""

    kind: str
    width: int
    inner: int
    layers: int
    heads: int
    image: int
    """Pixels along each side of its input."""
    patch: int
    options: Mapping[str, Any]
    """The whole configuration, for entries that only one kind has."""

    @property
    def side(self) -> int:
        """Patches along each side."""
        return self.image // self.patch

    @property
    def places(self) -> int:
        """Tokens in its layers for one square of pixels."""
        return self.side**2 + (self.kind in ("clip_vision_model", "internvl_vision"))

    @property
    def norm_bias(self) -> bool:
        """Layer norms have a bias; RMS norms have none."""
        return self.kind != "qwen2_5_vl_vision" and self.options.get("norm_type") != "rms_norm"

    @property
    def any_size(self) -> bool:
        """Whether it reads images of any size: `image` is then the side of a large one."""
        return self.kind.startswith("qwen")

    @property
    def gated(self) -> bool:
        return self.kind == "qwen2_5_vl_vision"

    def weights(self, at: str) -> Weights:
        """Everything, with its modules under `at`; what merges patches for a language model is the projector's."""
        if self.kind.startswith("qwen"):
            return self._qwen(at)
        return self._intern(at) if self.kind == "internvl_vision" else self._clip(at)

    def _clip(self, at: str) -> Weights:
        clip, siglip = self.kind == "clip_vision_model", self.kind == "siglip_vision_model"
        yield tensor(f"{at}.embeddings.patch_embedding.weight", self.width, 3, self.patch, self.patch)
        if clip:
            yield tensor(f"{at}.embeddings.class_embedding", self.width)
            yield from norm(f"{at}.pre_layrnorm", self.width)
        else:
            yield tensor(f"{at}.embeddings.patch_embedding.bias", self.width)
        yield tensor(f"{at}.embeddings.position_embedding.weight", self.places, self.width)
        for layer in (f"{at}.encoder.layers.{number}" for number in range(self.layers)):
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield from linear(f"{layer}.self_attn.{name}", self.width, self.width)
            yield from self._mlp(f"{layer}.mlp")
            for name in ("layer_norm1", "layer_norm2"):
                yield from norm(f"{layer}.{name}", self.width)
        yield from norm(f"{at}.post_layernorm", self.width)
        if siglip and self.options.get("vision_use_head", True):
            yield from self._pooling(f"{at}.head")

    def _pooling(self, at: str) -> Weights:
        """SigLIP's attention over all patches, which only its text side would read."""
        yield tensor(f"{at}.probe", self.width)
        yield tensor(f"{at}.attention.in_proj_weight", 3 * self.width, self.width)
        yield tensor(f"{at}.attention.in_proj_bias", 3 * self.width)
        yield from linear(f"{at}.attention.out_proj", self.width, self.width)
        yield from norm(f"{at}.layernorm", self.width)
        yield from self._mlp(f"{at}.mlp")

    def _intern(self, at: str) -> Weights:
        yield tensor(f"{at}.embeddings.cls_token", self.width)
        yield tensor(f"{at}.embeddings.position_embeddings", self.places, self.width)
        if self.options.get("use_mask_token"):
            yield tensor(f"{at}.embeddings.mask_token", self.width)
        yield tensor(f"{at}.embeddings.patch_embeddings.projection.weight", self.width, 3, self.patch, self.patch)
        yield tensor(f"{at}.embeddings.patch_embeddings.projection.bias", self.width)
        bias = bool(self.options.get("attention_bias"))
        for layer in (f"{at}.encoder.layer.{number}" for number in range(self.layers)):
            for name in ("q_proj", "k_proj", "v_proj"):
                yield from linear(f"{layer}.attention.{name}", self.width, self.width, bias)
            yield from linear(f"{layer}.attention.projection_layer", self.width, self.width)
            if self.options.get("use_qk_norm"):
                yield from norm(f"{layer}.attention.q_norm", self.width, bias=False)
                yield from norm(f"{layer}.attention.k_norm", self.width, bias=False)
            yield from self._mlp(f"{layer}.mlp")
            for name in ("layernorm_before", "layernorm_after"):
                yield from norm(f"{layer}.{name}", self.width, self.norm_bias)
            for name in ("lambda_1", "lambda_2"):
                yield tensor(f"{layer}.{name}", self.width)
        if not self.options.get("use_mean_pooling", True):
            yield from norm(f"{at}.layernorm", self.width)

    def _qwen(self, at: str) -> Weights:
        depth = self.options["temporal_patch_size"]
        yield tensor(f"{at}.patch_embed.proj.weight", self.width, 3, depth, self.patch, self.patch)
        for layer in (f"{at}.blocks.{number}" for number in range(self.layers)):
            yield from linear(f"{layer}.attn.qkv", self.width, 3 * self.width)
            yield from linear(f"{layer}.attn.proj", self.width, self.width)
            for name in ("norm1", "norm2"):
                yield from norm(f"{layer}.{name}", self.width, self.norm_bias)
            if self.gated:
                for name in ("gate_proj", "up_proj"):
                    yield from linear(f"{layer}.mlp.{name}", self.width, self.inner)
                yield from linear(f"{layer}.mlp.down_proj", self.inner, self.width)
            else:
                yield from self._mlp(f"{layer}.mlp")

    def _mlp(self, at: str) -> Weights:
        yield from linear(f"{at}.fc1", self.width, self.inner)
        yield from linear(f"{at}.fc2", self.inner, self.width)


def encoder_of(config: Mapping[str, Any], where: str) -> Encoder:
    """The sizes in a vision encoder's config.json; that of a whole CLIP holds its encoder's."""
    config = config.get("vision_config", config)
    kind = str(config.get("model_type", "clip_vision_model"))
    if kind not in DEFAULTS:
        raise UnknownShapes(f"{where}: the shapes of a {kind!r} are not known here (known: {', '.join(DEFAULTS)})")
    sizes = {**DEFAULTS[kind], **{key: value for key, value in config.items() if value is not None}}
    qwen = kind.startswith("qwen")
    width = sizes["embed_dim"] if kind == "qwen2_vl_vision" else sizes["hidden_size"]
    return Encoder(
        kind=kind,
        width=width,
        inner=sizes["intermediate_size"] if "intermediate_size" in sizes else int(width * sizes["mlp_ratio"]),
        layers=sizes["depth" if qwen else "num_hidden_layers"],
        heads=sizes["num_heads" if qwen else "num_attention_heads"],
        image=_side(sizes["image_size"]),
        patch=_side(sizes["patch_size"]),
        options=sizes,
    )


def _side(size: Any) -> int:
    """InternVL writes both sides."""
    return int(size[0] if isinstance(size, (list, tuple)) else size)
