"""Heads: one number for an answer, read from its last token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from mmjobs.model.sharded import divide

SCORE = "score"
"""The name of the head in its network, as transformers' own classifiers call theirs."""
FILE, STATISTICS = "score.safetensors", "reward.json"
"""Files of an export: the head that transformers has no place for, and the mean and spread of its rewards."""


class ScoreHead(nn.Linear):
    """A linear layer without bias: a constant would cancel in every comparison, and drift."""

    def __init__(self, width: int, std: float) -> None:
        super().__init__(width, 1, bias=False)
        nn.init.normal_(self.weight, std=std)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:  # [..., D] -> [...]
        """With all digits: half precision would make ties of answers that are nearly as good."""
        exact = hidden if hidden.dtype == torch.float64 else hidden.float()
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(exact, self.weight.to(exact.dtype)).squeeze(-1)


def add_score(network: Any) -> None:
    """Add a new head to a network, so small that all answers begin with nearly the same reward."""
    width = network.config.get_text_config().hidden_size
    network.score = ScoreHead(width, 1 / (width + 1))
    divide(network)


def freeze_vocabulary_head(network: Any) -> None:
    """Freeze the vocabulary's head where nothing else uses it: it would have no gradient."""
    words = network.get_output_embeddings()
    if words is not None and words.weight is not network.get_input_embeddings().weight:
        words.weight.requires_grad_(False)


def score_of(network: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """The rewards after these hidden states: [A, D] -> [A]"""
    scores: torch.Tensor = network.get_submodule(SCORE)(hidden)
    return scores


def save_score(network: Any, tokenizer: Any, end: int, folder: Path, statistics: dict[str, float]) -> Any:
    """Write what transformers would not; the network without it, or as a classifier where there is such a class.

    A classifier reads the last token that is no padding, and pads with what its tokenizer says: never with the `end`
    of an answer, or it would read the token before.
    """
    (folder / STATISTICS).write_text(json.dumps(statistics, indent=1) + "\n")
    head = network.score.weight.detach().contiguous()
    del network.score
    if type(network.config) not in AutoModelForSequenceClassification._model_mapping:
        safetensors.torch.save_file({f"{SCORE}.weight": head}, folder / FILE, metadata={"format": "pt"})
        return network
    if tokenizer.pad_token_id in (None, end):
        others = (tokenizer.unk_token_id, tokenizer.bos_token_id, *tokenizer.all_special_ids)
        chosen = next((token for token in others if token not in (None, end)), None)
        tokenizer.pad_token = None if chosen is None else tokenizer.convert_ids_to_tokens(chosen)
    network.config.num_labels, network.config.pad_token_id = 1, tokenizer.pad_token_id
    with torch.device("meta"):
        classifier: Any = AutoModelForSequenceClassification.from_config(network.config)
    classifier.model, classifier.score = network.model, nn.Linear(head.shape[1], 1, bias=False)
    classifier.score.weight = nn.Parameter(head)
    return classifier
