"""The tiny model that stands for a real one, by its family: the `model_type` of its config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers

from mmjobs.model.toys import models
from mmjobs.model.toys.tokenizers import TURNS, llama2_tokenizer, llama3_tokenizer
from mmlaunch.errors import UserError

POSITIONS = 32768
"""The longest sequence of a toy: no recipe's own limits have to change for it."""
WHOLE: dict[str, Callable[[Path], Path]] = {
    "llava": models.llava, "llava_next": models.llava_next, "llava_onevision": models.onevision,
    "idefics2": models.idefics2, "internvl": models.internvl, "qwen2_vl": models.qwen2_vl,
    "qwen2_5_vl": models.qwen2_5_vl, "gemma3": models.gemma3, "paligemma": models.paligemma, "gemma": models.gemma,
}  # fmt: skip
"""Models whose processor or chat template is of their own; every other family is a language model."""
QWEN_END = "<|endoftext|>"
"""The tokenizers of Qwen add it where they lack it: it would have no row in the model's matrices."""
OWN_HEADS = ("gemma2", "gemma3_text", "qwen3")
"""Language models whose heads are not as wide as hidden states divided by heads."""


def make(folder: Path, family: str, vocabulary: str, options: Mapping[str, Any]) -> Path:
    """Write the toy of a family into a folder; `vocabulary` is that of its tokenizer, llama-2 or llama-3."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if family in ("clip", "clip_vision_model"):
        return models.clip(folder, whole=family == "clip", **options)
    if family in WHOLE:
        return WHOLE[family](folder)
    try:
        models.text_config(llama2_tokenizer(), family)
    except ValueError:
        known = ", ".join(sorted(WHOLE))
        what = f"no toy of the family {family} can be made; those that see are {known}"
        raise UserError(f"{what}; write a model of one of these, or a language model that transformers knows") from None
    tokenizer = llama3_tokenizer("<|pad|>", QWEN_END) if vocabulary == "llama-3" else llama2_tokenizer("<pad>")
    tokenizer.pad_token = "<|pad|>" if vocabulary == "llama-3" else "<pad>"
    tokenizer.chat_template = TURNS
    heads: dict[str, Any] = {"head_dim": 8} if family in OWN_HEADS else {}
    return models.llama(folder, tokenizer, kind=family, max_position_embeddings=POSITIONS, **heads)
