"""Well-known names of the Hugging Face hub: the entries of their config.json that shapes need."""

from __future__ import annotations

from typing import Any


def _language(
    kind: str, width: int, inner: int, layers: int, heads: int, groups: int, words: int, positions: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": kind, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "vocab_size": words,
        "max_position_embeddings": positions, **more,
    }  # fmt: skip


def _vision(
    width: int, inner: int, layers: int, heads: int, image: int, patch: int, kind: str = "clip_vision_model", **m: Any
) -> dict[str, Any]:
    return {
        "model_type": kind, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "image_size": image, "patch_size": patch, **m,
    }  # fmt: skip


_LLAMA_2_7B = _language("llama", 4096, 11008, 32, 32, 32, 32000, 4096)
_LLAMA_2_13B = _language("llama", 5120, 13824, 40, 40, 40, 32000, 4096)
_LLAMA_2_70B = _language("llama", 8192, 28672, 80, 64, 8, 32000, 4096)
_LLAMA_3_8B = _language("llama", 4096, 14336, 32, 32, 8, 128256, 8192)
_LLAMA_3_70B = _language("llama", 8192, 28672, 80, 64, 8, 128256, 8192)
_LLAMA_31_8B = {**_LLAMA_3_8B, "max_position_embeddings": 131072}
_LLAMA_31_70B = {**_LLAMA_3_70B, "max_position_embeddings": 131072}
_MISTRAL = _language("mistral", 4096, 14336, 32, 32, 8, 32000, 32768)
_GEMMA_2B = _language("gemma", 2048, 16384, 18, 8, 1, 256000, 8192, head_dim=256, tie_word_embeddings=True)
_GEMMA_7B = _language("gemma", 3072, 24576, 28, 16, 16, 256000, 8192, head_dim=256, tie_word_embeddings=True)
_QWEN = {"tokenizer_words": 151665}  # its matrices are higher than its tokenizer is long
_QWEN_0B5 = _language("qwen2", 896, 4864, 24, 14, 2, 151936, 32768, tie_word_embeddings=True, **_QWEN)
_QWEN_1B5 = _language("qwen2", 1536, 8960, 28, 12, 2, 151936, 32768, tie_word_embeddings=True, **_QWEN)
_QWEN_7B = _language("qwen2", 3584, 18944, 28, 28, 4, 152064, 32768, **_QWEN)
_QWEN_72B = _language("qwen2", 8192, 29568, 80, 64, 8, 152064, 32768, **_QWEN)
_CLIP_L = _vision(1024, 4096, 24, 16, 224, 14)
_CLIP_L_336 = {**_CLIP_L, "image_size": 336}
_SIGLIP = {**_vision(1152, 4304, 27, 16, 980, 14), "model_type": "idefics2_vision"}
_INTERN_300M = _vision(1024, 4096, 24, 16, 448, 14, "internvl_vision", attention_bias=True)
_INTERN_6B = _vision(3200, 12800, 45, 25, 448, 14, "internvl_vision", use_qk_norm=True, norm_type="rms_norm")
_INTERNLM_2B = _language("llama", 2048, 8192, 24, 16, 8, 92553, 32768)
_INTERNLM_7B = _language("llama", 4096, 14336, 32, 32, 8, 92553, 32768)
_QWEN_VISION = {"depth": 32, "num_heads": 16, "patch_size": 14}


def _llava(text: dict[str, Any], kind: str = "llava") -> dict[str, Any]:
    return {"model_type": kind, "vision_config": _CLIP_L_336, "text_config": {**text, "vocab_size": 32064}}


def _intern(vision: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": "internvl", "tie_word_embeddings": False, "vision_config": vision, "text_config": text}


def _qwen_vl(kind: str, text: dict[str, Any], tied: bool, **vision: Any) -> dict[str, Any]:
    whole = {**text, "model_type": f"{kind}_text"}
    vision = {**_QWEN_VISION, "model_type": f"{kind}_vision", **vision}
    return {"model_type": kind, "tie_word_embeddings": tied, "text_config": whole, "vision_config": vision}


_IDEFICS = {"model_type": "idefics2", "vision_config": _SIGLIP, "text_config": {**_MISTRAL, "vocab_size": 32003}}
_QWEN_3B_TEXT = _language("qwen2", 2048, 11008, 36, 16, 2, 151936, 128000)

_SERIES: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
    ("openai/clip-vit-large-patch14", ("",), _CLIP_L),
    ("openai/clip-vit-large-patch14-336", ("",), _CLIP_L_336),
    ("openai/clip-vit-base-patch32", ("",), _vision(768, 3072, 12, 12, 224, 32)),
    ("openai/clip-vit-base-patch16", ("",), _vision(768, 3072, 12, 12, 224, 16)),
    ("meta-llama/Meta-Llama-3-8B", ("", "-Instruct"), _LLAMA_3_8B),
    ("meta-llama/Meta-Llama-3-70B", ("", "-Instruct"), _LLAMA_3_70B),
    ("meta-llama/Llama-3.1-8B", ("", "-Instruct"), _LLAMA_31_8B),
    ("meta-llama/Llama-3.1-70B", ("", "-Instruct"), _LLAMA_31_70B),
    ("meta-llama/Meta-Llama-3.1-8B", ("", "-Instruct"), _LLAMA_31_8B),
    ("meta-llama/Meta-Llama-3.1-70B", ("", "-Instruct"), _LLAMA_31_70B),
    ("meta-llama/Llama-2-7b", ("-hf", "-chat-hf"), _LLAMA_2_7B),
    ("meta-llama/Llama-2-13b", ("-hf", "-chat-hf"), _LLAMA_2_13B),
    ("meta-llama/Llama-2-70b", ("-hf", "-chat-hf"), _LLAMA_2_70B),
    ("lmsys/vicuna-7b-v1.5", ("",), _LLAMA_2_7B),
    ("lmsys/vicuna-13b-v1.5", ("",), _LLAMA_2_13B),
    ("mistralai/Mistral-7B-v0.1", ("",), _MISTRAL),
    ("mistralai/Mistral-7B-Instruct", ("-v0.1", "-v0.2"), _MISTRAL),
    ("google/gemma-2b", ("", "-it"), _GEMMA_2B),
    ("google/gemma-7b", ("", "-it"), _GEMMA_7B),
    ("Qwen/Qwen2.5-0.5B", ("", "-Instruct"), _QWEN_0B5),
    ("Qwen/Qwen2.5-1.5B", ("", "-Instruct"), _QWEN_1B5),
    ("Qwen/Qwen2.5-7B", ("", "-Instruct"), _QWEN_7B),
    ("Qwen/Qwen2.5-72B", ("", "-Instruct"), _QWEN_72B),
    ("llava-hf/llava-1.5-7b-hf", ("",), _llava(_LLAMA_2_7B)),
    ("llava-hf/llava-1.5-13b-hf", ("",), _llava(_LLAMA_2_13B)),
    ("llava-hf/llava-v1.6-vicuna-7b-hf", ("",), _llava(_LLAMA_2_7B, "llava_next")),
    ("llava-hf/llava-v1.6-mistral-7b-hf", ("",), _llava(_MISTRAL, "llava_next")),
    ("HuggingFaceM4/idefics2-8b", ("", "-base", "-chatty"), _IDEFICS),
    ("Qwen/Qwen2-VL-2B", ("", "-Instruct"), _qwen_vl("qwen2_vl", _QWEN_1B5, True, hidden_size=1536)),
    ("Qwen/Qwen2-VL-7B", ("", "-Instruct"), _qwen_vl("qwen2_vl", _QWEN_7B, False, hidden_size=3584)),
    ("Qwen/Qwen2-VL-72B", ("", "-Instruct"), _qwen_vl("qwen2_vl", _QWEN_72B, False, hidden_size=8192)),
    ("Qwen/Qwen2.5-VL-3B-Instruct", ("",),
     _qwen_vl("qwen2_5_vl", _QWEN_3B_TEXT, True, hidden_size=1280, intermediate_size=3420, out_hidden_size=2048)),
    ("Qwen/Qwen2.5-VL-7B-Instruct", ("",),
     _qwen_vl("qwen2_5_vl", _QWEN_7B, False, hidden_size=1280, intermediate_size=3420, out_hidden_size=3584)),
    ("OpenGVLab/InternVL2_5-1B", ("", "-MPO", "-MPO-hf"),
     _intern(_INTERN_300M, {**_QWEN_0B5, "vocab_size": 151674, "tie_word_embeddings": False})),
    ("OpenGVLab/InternVL2_5-2B", ("", "-MPO", "-MPO-hf"), _intern(_INTERN_300M, _INTERNLM_2B)),
    ("OpenGVLab/InternVL2_5-8B", ("", "-MPO", "-MPO-hf"), _intern(_INTERN_300M, _INTERNLM_7B)),
    ("OpenGVLab/InternVL2_5-78B", ("", "-MPO", "-MPO-hf"), _intern(_INTERN_6B, {**_QWEN_72B, "vocab_size": 151674})),
)  # fmt: skip

KNOWN: dict[str, dict[str, Any]] = {
    f"{name}{ending}": config for name, endings, config in _SERIES for ending in endings
}
"""Repository -> configuration."""
