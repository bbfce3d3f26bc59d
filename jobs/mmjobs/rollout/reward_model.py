"""The reward model: a frozen model that gives each whole answer a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mmjobs.data.batch import Batch
from mmjobs.model.heads import score_of
from mmjobs.objectives.forward import hidden_states


def scores_of(network: nn.Module, batch: Batch) -> torch.Tensor:
    """The score of each answer, read from its last token: [A]"""
    return score_of(network, hidden_states(network, batch, batch.answers.last))


@dataclass(frozen=True)
class RewardModel:
    """Called by all ranks together, each with as many rows."""

    model: nn.Module
    """As `frozen_model` makes it."""
    mean: float = 0.0
    spread: float = 1.0
    """Of the rewards in its own training, which standardise its scores; 0 and 1 leave them as they are."""

    def __call__(self, batch: Batch) -> Sequence[float]:
        """The scores of the answers of a row."""
        with torch.no_grad():
            device = torch.device(torch.cuda.current_device() if torch.cuda.is_available() else "cpu")
            raw: torch.Tensor = self.model(scores_of, batch.to(device))
        values: list[float] = ((raw.double() - self.mean) / self.spread).tolist()
        return values
