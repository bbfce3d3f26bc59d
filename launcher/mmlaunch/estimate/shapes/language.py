"""Language models of LLaMA's shape: their sizes out of a config.json, and the names and sizes of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmlaunch.estimate.shapes.configs import UnknownShapes
from mmlaunch.estimate.shapes.weights import Weights, linear, norm, tensor

_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048,
}  # fmt: skip
_MISTRAL = {**_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072}
_QWEN = {
    **_LLAMA, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}  # fmt: skip
_QWEN_VL = {
    **_QWEN, "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8,
}  # fmt: skip
_GEMMA = {
    "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}  # fmt: skip
_GEMMA_2 = {
    **_GEMMA, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA, "mistral": _MISTRAL, "qwen2": _QWEN, "qwen3": {**_QWEN, "head_dim": 128}, "gemma": _GEMMA,
    "gemma2": _GEMMA_2, "qwen2_vl_text": _QWEN_VL, "qwen2_5_vl_text": _QWEN_VL,
}  # fmt: skip
"""The default of each key that a config.json may leave out, for each `model_type`."""

_QKV_BIAS = ("qwen2", "qwen2_vl_text", "qwen2_5_vl_text")
_FOUR_NORMS = ("gemma2",)


@dataclass(frozen=True)
class Decoder:
    """The sizes of a language model."""

    width: int
    inner: int
    """The width of the gated MLP."""
    layers: int
    heads: int
    groups: int
    """The number of heads of keys and values."""
    head: int
    words: int
    """Rows of the embeddings."""
    positions: int
    tied: bool = False
    """The output head is the embeddings."""
    bias: tuple[bool, bool, bool] = (False, False, False)
    """Biases: of queries, keys and values; of the attention's output; of the MLP."""
    norm_heads: bool = False
    """Queries and keys are normalised (Qwen3)."""
    norms: int = 2
    """In each layer."""

    @property
    def queries(self) -> int:
        return self.heads * self.head

    @property
    def keys(self) -> int:
        return self.groups * self.head

    def with_words(self, words: int) -> Decoder:
        """The same model with another vocabulary."""
        return replace(self, words=words)

    def weights(self, body: str, head: str = "lm_head") -> Weights:
        """Everything, with the body's modules under `body` and the output head beside it."""
        yield tensor(f"{body}.embed_tokens.weight", self.words, self.width)
        for number in range(self.layers):
            yield from self._layer(f"{body}.layers.{number}")
        yield from norm(f"{body}.norm", self.width, bias=False)
        if not self.tied:
            yield from linear(head, self.width, self.words, bias=False)

    def _layer(self, at: str) -> Weights:
        of_qkv, of_output, of_mlp = self.bias
        for name, outputs in (("q", self.queries), ("k", self.keys), ("v", self.keys)):
            yield from linear(f"{at}.self_attn.{name}_proj", self.width, outputs, of_qkv)
        yield from linear(f"{at}.self_attn.o_proj", self.queries, self.width, of_output)
        if self.norm_heads:
            yield from norm(f"{at}.self_attn.q_norm", self.head, bias=False)
            yield from norm(f"{at}.self_attn.k_norm", self.head, bias=False)
        for name in ("gate", "up"):
            yield from linear(f"{at}.mlp.{name}_proj", self.width, self.inner, of_mlp)
        yield from linear(f"{at}.mlp.down_proj", self.inner, self.width, of_mlp)
        names = (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        )
        for name in names[: self.norms]:
            yield from norm(f"{at}.{name}", self.width, bias=False)


def decoder_of(config: Mapping[str, Any], where: str) -> Decoder:
    """The sizes in a language model's config.json."""
    kind = str(config.get("model_type", "llama"))
    if kind not in DEFAULTS:
        raise UnknownShapes(f"{where}: the shapes of a {kind!r} are not known here (known: {', '.join(DEFAULTS)})")
    sizes = {**DEFAULTS[kind], **{key: value for key, value in config.items() if value is not None}}
    heads = sizes["num_attention_heads"]
    everywhere = bool(sizes.get("attention_bias"))
    return Decoder(
        width=sizes["hidden_size"],
        inner=sizes["intermediate_size"],
        layers=sizes["num_hidden_layers"],
        heads=heads,
        groups=sizes.get("num_key_value_heads", heads),
        head=sizes.get("head_dim", sizes["hidden_size"] // heads),
        words=sizes["vocab_size"],
        positions=sizes["max_position_embeddings"],
        tied=bool(sizes.get("tie_word_embeddings")),
        bias=(everywhere or kind in _QKV_BIAS, everywhere, bool(sizes.get("mlp_bias"))),
        norm_heads=kind == "qwen3",
        norms=4 if kind in _FOUR_NORMS else 2,
    )
