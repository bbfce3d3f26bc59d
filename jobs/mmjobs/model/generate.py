"""Answers in the model's own words: greedy generation for the samples that are logged."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerFast

from mmjobs.model import tokens

LONGEST = 48
"""Tokens; a sample is there to be looked at."""


def greedy(network: nn.Module, tokenizer: PreTrainedTokenizerFast, prompt: list[int], pixels: torch.Tensor) -> str:
    """The answer to one prompt with its images: [N, 3, S, S]."""
    ids = torch.tensor([prompt])  # [1, T]
    config = GenerationConfig(
        max_new_tokens=LONGEST,
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    made = cast(Any, network).generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, generation_config=config
    )
    return tokens.decode(tokenizer, made[0, len(prompt) :].tolist())
