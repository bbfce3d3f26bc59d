"""Tiny models of real classes with random weights, written in the formats that the hub has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from mmjobs.model.heads import STATISTICS
from mmjobs.model.pretrained import still
from mmjobs.model.toys.tokenizers import CHATML, TURNS, VICUNA, llama2_tokenizer, llama3_tokenizer

hf: Any = transformers
"""Its types do not know every argument that its classes take."""


def text_config(tokenizer: Any, kind: str = "llama", **more: Any) -> Any:
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.2,
    }  # fmt: skip
    return hf.AutoConfig.for_model(kind, **{**shape, **more})


def vision_config(**more: Any) -> Any:
    shape = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
    }
    return hf.CLIPVisionConfig(**{**shape, **more}, projection_dim=16, initializer_range=0.2)


def clip(folder: Path, whole: bool = True, layers: int = 3) -> Path:
    """A CLIP with both of its towers, as the hub has it, or the vision tower alone."""
    torch.manual_seed(1)
    seen = vision_config(num_hidden_layers=layers)
    if whole:
        text = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 50,
        }
        config = hf.CLIPConfig(text_config=text, vision_config=seen.to_dict(), projection_dim=16)
        hf.CLIPModel(config).save_pretrained(folder)
    else:
        hf.CLIPVisionModel(seen).save_pretrained(folder)
    square = {"height": 28, "width": 28}
    hf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=square, image_mean=[0.4, 0.5, 0.6]).save_pretrained(
        folder
    )
    return folder


def llama(folder: Path, tokenizer: Any, scores: bool = False, **more: Any) -> Path:
    """A causal language model of LLaMA's shape with its tokenizer, in several shards; or a reward model's export."""
    torch.manual_seed(2)
    kind: Any = hf.AutoModelForSequenceClassification if scores else hf.AutoModelForCausalLM
    config = text_config(tokenizer, **more, num_labels=1) if scores else text_config(tokenizer, **more)
    kind.from_config(config).save_pretrained(folder, max_shard_size="20KB")
    if scores:
        (folder / STATISTICS).write_text("{}")
    tokenizer.save_pretrained(folder)
    return folder


def in_turns(folder: Path, kind: str, **more: Any) -> Path:
    """A causal language model of any family, that speaks in `TURNS`."""
    tokenizer = llama2_tokenizer("<pad>")
    tokenizer.pad_token, tokenizer.chat_template = "<pad>", TURNS
    return llama(folder, tokenizer, kind=kind, **more)


def llava(folder: Path, text: dict[str, Any] | None = None) -> Path:
    tokenizer = llama2_tokenizer("<image>", "<pad>")
    tokenizer.pad_token = "<pad>"
    language = text_config(tokenizer, **(text or {}))
    config = hf.LlavaConfig(
        vision_config=vision_config(), text_config=language, image_token_index=_id(tokenizer, "<image>")
    )
    square = {"height": 28, "width": 28}
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=square)
    template = (
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
        "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    processor = hf.LlavaProcessor(
        images, tokenizer, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip
    return _saved(folder, hf.LlavaForConditionalGeneration, config, processor)


def llava_next(folder: Path) -> Path:
    tokenizer = llama2_tokenizer("<image>", "<pad>")
    tokenizer.pad_token = "<pad>"
    pins = [[28, 56], [56, 28], [56, 56]]
    config = hf.LlavaNextConfig(
        vision_config=vision_config(), text_config=text_config(tokenizer), image_token_index=_id(tokenizer, "<image>"),
        image_grid_pinpoints=pins,
    )  # fmt: skip
    square = {"height": 28, "width": 28}
    images = hf.LlavaNextImageProcessorPil(size={"shortest_edge": 28}, crop_size=square, image_grid_pinpoints=pins)
    processor = hf.LlavaNextProcessor(
        images, tokenizer, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=VICUNA,
    )  # fmt: skip
    return _saved(folder, hf.LlavaNextForConditionalGeneration, config, processor)


def idefics2(folder: Path) -> Path:
    tokenizer = llama2_tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<pad>")
    tokenizer.pad_token = "<pad>"
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
    }
    config = hf.Idefics2Config(
        vision_config=vision, text_config=text_config(tokenizer, "mistral"), image_token_id=_id(tokenizer, "<image>"),
        perceiver_config={
            "hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
            "resampler_head_dim": 8, "num_key_value_heads": 1,
        },
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    images = hf.Idefics2ImageProcessorPil(size={"shortest_edge": 20, "longest_edge": 28}, do_image_splitting=False)
    template = (
        "{% for message in messages %}{{ message['role'].capitalize() }}"
        "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
        "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    )
    processor = hf.Idefics2Processor(images, tokenizer, image_seq_len=4, chat_template=template)
    return _saved(folder, hf.Idefics2ForConditionalGeneration, config, processor)


def internvl(folder: Path) -> Path:
    words = ("<img>", "</img>", "<IMG_CONTEXT>", "<|im_start|>", "<|im_end|>", "<video>")
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = llama3_tokenizer(*words, extra_special_tokens=names)
    tokenizer.eos_token = "<|im_end|>"
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [28, 28],
        "patch_size": [7, 7],
    }
    config = hf.InternVLConfig(
        vision_config=vision,
        text_config=text_config(tokenizer, "qwen2"),
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    images = hf.GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = still(hf.InternVLProcessor)(
        images, tokenizer, image_seq_length=4, chat_template=CHATML.replace("<image>", "<IMG_CONTEXT>")
    )
    return _saved(folder, hf.InternVLForConditionalGeneration, config, processor)


def qwen2_vl(folder: Path) -> Path:
    seen = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 7}
    return _qwen(folder, "Qwen2VL", "qwen2_vl_text", seen)


def qwen2_5_vl(folder: Path) -> Path:
    seen = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "num_heads": 2, "patch_size": 7,
        "window_size": 28, "fullatt_block_indexes": [1],
    }  # fmt: skip
    return _qwen(folder, "Qwen2_5_VL", "qwen2_5_vl_text", seen)


def _qwen(folder: Path, kind: str, text: str, seen: dict[str, Any]) -> Path:
    words = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = llama3_tokenizer(*words)
    tokenizer.eos_token = "<|im_end|>"
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    ids = {
        f"{name}_token_id": _id(tokenizer, word)
        for name, word in (
            ("image", "<|image_pad|>"), ("video", "<|video_pad|>"), ("vision_start", "<|vision_start|>"),
            ("vision_end", "<|vision_end|>"),
        )
    }  # fmt: skip
    language = text_config(tokenizer, text, rope_parameters=rope).to_dict()
    config = getattr(hf, f"{kind}Config")(text_config=language, vision_config=seen, **ids)
    images = hf.Qwen2VLImageProcessorPil(
        min_pixels=14 * 14 * 2, max_pixels=14 * 14 * 16, patch_size=7, merge_size=2, temporal_patch_size=2
    )
    template = CHATML.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = still(getattr(hf, f"{kind}Processor"))(images, tokenizer, chat_template=template)
    return _saved(folder, getattr(hf, f"{kind}ForConditionalGeneration"), config, processor)


def gemma(folder: Path) -> Path:
    tokenizer = llama2_tokenizer("<start_of_turn>", "<end_of_turn>", "<pad>")
    tokenizer.pad_token = "<pad>"
    tokenizer.chat_template = (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}{{ '<start_of_turn>' + message['role'].replace('assistant', 'model') + '\n' }}"
        "{{ message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    )
    return llama(folder, tokenizer, kind="gemma", head_dim=8, tie_word_embeddings=True)


def gemma3(folder: Path) -> Path:
    words = ("<start_of_image>", "<end_of_image>", "<image_soft_token>", "<start_of_turn>", "<end_of_turn>", "<pad>")
    named = dict(zip(("boi_token", "eoi_token", "image_token"), words[:3], strict=True))
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=llama2_tokenizer(*words)._tokenizer,
        bos_token="<s>", eos_token="<end_of_turn>", unk_token="<unk>", pad_token="<pad>", extra_special_tokens=named,
    )  # fmt: skip
    ids = {f"{name}_index": _id(tokenizer, word) for name, word in named.items()}
    text = text_config(tokenizer, "gemma3_text", head_dim=8, query_pre_attn_scalar=8, sliding_window=512)
    config = hf.Gemma3Config(text_config=text, vision_config=_SIGLIP, mm_tokens_per_image=4, **ids)
    images = hf.Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    template = VICUNA.replace("'<image>'", "'<start_of_image>'")
    processor = hf.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4)
    return _saved(folder, hf.Gemma3ForConditionalGeneration, config, processor)


def onevision(folder: Path) -> Path:
    named = {"image_token": "<image>", "video_token": "<video>"}
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=llama2_tokenizer("<image>", "<video>", "<pad>")._tokenizer,
        bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>", extra_special_tokens=named,
    )  # fmt: skip
    pins, ids = [[28, 56], [56, 28], [56, 56]], {f"{name}_index": _id(tokenizer, word) for name, word in named.items()}
    config = hf.LlavaOnevisionConfig(
        vision_config=_SIGLIP, text_config=text_config(tokenizer, "qwen2"), image_grid_pinpoints=pins,
        vision_aspect_ratio="anyres_max_9", **ids,
    )  # fmt: skip
    images = hf.LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=pins)
    processor = still(hf.LlavaOnevisionProcessor)(
        images, tokenizer, num_image_tokens=16, vision_feature_select_strategy="full", chat_template=VICUNA,
        vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    return _saved(folder, hf.LlavaOnevisionForConditionalGeneration, config, processor)


def paligemma(folder: Path) -> Path:
    tokenizer = llama2_tokenizer("<image>", "<pad>")
    tokenizer.pad_token = "<pad>"
    text = text_config(tokenizer, "gemma", head_dim=8)
    config = hf.PaliGemmaConfig(
        vision_config={**_SIGLIP, "projection_dim": 32}, text_config=text, projection_dim=32, hidden_size=32,
        image_token_index=_id(tokenizer, "<image>"), pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    images = hf.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    images.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(images, tokenizer, chat_template=VICUNA)
    return _saved(folder, hf.PaliGemmaForConditionalGeneration, config, processor)


_SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 28, "patch_size": 7, "vision_use_head": False,
}  # fmt: skip
SEEING: dict[str, Callable[[Path], Path]] = {
    "llava": llava, "llava_next": llava_next, "idefics2": idefics2, "internvl": internvl, "qwen2_vl": qwen2_vl,
}  # fmt: skip


def _id(tokenizer: Any, word: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(word))


def _saved(folder: Path, kind: Any, config: Any, processor: Any) -> Path:
    torch.manual_seed(3)
    kind(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
