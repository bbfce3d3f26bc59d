"""The forward of a batch: hidden states and log-probabilities of the tokens that objectives need."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmjobs.data.batch import Batch
from mmjobs.model import last_layer, trees
from mmjobs.model.log_probs import LogProbs, log_probs


def hidden_states(network: nn.Module, batch: Batch, read: torch.Tensor) -> torch.Tensor:
    """The hidden states after the last layer, at these places of the flattened rows: [U] -> [U, D]."""
    named: dict[str, Any] = {"attention_mask": batch.attention}
    named |= trees.arguments(network, batch.trees, batch.ids.device)
    named |= (few := last_layer.arguments(network, read))
    states: torch.Tensor = network.get_submodule("model")(
        input_ids=batch.ids, position_ids=batch.positions, **batch.image_inputs, **named, use_cache=False
    ).last_hidden_state  # [U, D] or [B, T, D]
    return states if few else states.flatten(0, 1)[read]


def answer_log_probs(network: nn.Module, batch: Batch, *also: str, temperature: float = 1.0) -> LogProbs:
    """The log-probability of each of the U tokens in the loss; `also` names more outputs."""
    states = hidden_states(network, batch, batch.in_loss(batch.before))
    return log_probs(network, states, batch.in_loss(batch.targets), also, temperature)


def answer_token_log_probs(network: nn.Module, batch: Batch, temperature: float = 1.0) -> torch.Tensor:
    """The log-probabilities alone: [U]"""
    return answer_log_probs(network, batch, temperature=temperature).values


def by_answer(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The sum over the tokens of each answer: [U] -> [A]."""
    return values.new_zeros(len(batch.answers)).index_add(0, batch.in_loss(batch.owners), values)


def by_example(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The sum over the tokens of all answers of each example: [U] -> [E]."""
    examples = batch.answers.example[batch.in_loss(batch.owners)]  # [U]
    return values.new_zeros(len(batch)).index_add(0, examples, values)
