"""Greedy generation, for the samples that an evaluation logs."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from mmjobs.data.chat import Chat
from mmjobs.data.images.preprocess import ImageInputs, Pixels

LONGEST = 48
"""The most tokens of a sample, which is for people to read."""


def greedy(network: nn.Module, chat: Chat, pixels: Pixels, prompt: list[int], image_inputs: ImageInputs) -> str:
    """The answer to one prompt with its images."""
    device = next(network.parameters()).device
    ids = torch.tensor([prompt], device=device)  # [1, T]
    made = cast(Any, network).generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=LONGEST,
        do_sample=False,
        pad_token_id=chat.tokenizer.pad_token_id,
        eos_token_id=[chat.end_id],
        **{name: value.to(device) for name, value in pixels.join([image_inputs], ids).items()},
    )
    return str(chat.tokenizer.decode(made[0, len(prompt) :].tolist(), skip_special_tokens=True))
