"""The reference model of LoRA: the policy without its adapters, at every step."""

from __future__ import annotations

import torch
from torch import nn

from mmjobs.data.batch import Batch
from mmjobs.model import adapters
from mmjobs.objectives.forward import answer_token_log_probs


def adapter_off(network: nn.Module, batch: Batch, temperature: float = 1.0) -> torch.Tensor:
    """The policy without its adapters, and without dropout: [U]"""
    learning = network.training
    network.eval()
    try:
        with torch.no_grad(), adapters.off(network):
            return answer_token_log_probs(network, batch, temperature)
    finally:
        network.train(learning)
