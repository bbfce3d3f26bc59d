"""The critic's loss: what an answer is worth before each of its tokens."""

from __future__ import annotations

import torch
from torch import nn

from mmjobs.data.batch import Batch
from mmjobs.model.heads import score_of
from mmjobs.objectives.forward import by_example, hidden_states
from mmjobs.objectives.objective import ObjectiveOutput, Units
from mmjobs.objectives.policy import NOTHING, VALID

RETURN, VALUE = "return", "value"
"""The token values of a rollout: what followed, and what the critic expected when the rollout was made."""


def values_of(network: nn.Module, batch: Batch) -> torch.Tensor:
    """The value before each token in the loss, read where the token is predicted: [U]"""
    return score_of(network, hidden_states(network, batch, batch.in_loss(batch.before)))


def values_and_last(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, and the value behind the last token of each token's answer: [U] each."""
    read = torch.cat([batch.in_loss(batch.before), batch.answers.last])
    values = score_of(network, hidden_states(network, batch, read))
    tokens = len(values) - len(batch.answers.last)
    return values[:tokens], values[tokens:][batch.in_loss(batch.owners)]


class Value:
    """The unit is the token: half its squared error, clipped around the old value (arXiv 1707.06347's code)."""

    over: tuple[str, ...] = ("tokens",)
    metrics: tuple[str, ...] = ("value", "clipped")

    def __init__(self, clip: float | None) -> None:
        self._clip = clip

    def units(self, batch: Batch) -> Units:
        return {"tokens": max(float(batch.token_values[VALID].sum()), NOTHING) if batch.token_values else 0.0}

    def __call__(self, network: nn.Module, batch: Batch) -> ObjectiveOutput:
        new = values_of(network, batch)
        nothing = torch.zeros_like(new)  # an empty row
        rollout = {name: batch.token_values.get(name, nothing).to(new) for name in (RETURN, VALUE, VALID)}
        error = (new - rollout[RETURN]).square()
        losses = error
        if self._clip is not None:
            kept = rollout[VALUE] + (new - rollout[VALUE]).clamp(-self._clip, self._clip)
            losses = torch.maximum(error, (kept - rollout[RETURN]).square())
        valid = rollout[VALID]
        each = losses / 2 * valid
        return ObjectiveOutput(
            losses={"tokens": each.sum()},
            example_losses=by_example(each.detach(), batch),
            metrics={
                "value": ((new * valid).sum().detach(), valid.sum()),
                "clipped": (((losses > error) * valid).sum().detach(), valid.sum()),
            },
        )
