"""Supervised fine-tuning: the negative log-probability of every answer token."""

from __future__ import annotations

from torch import nn

from mmjobs.data.batch import Batch
from mmjobs.objectives.forward import answer_log_probs, by_answer
from mmjobs.objectives.objective import ObjectiveOutput, Units
from mmlaunch.recipe.objective import Sft as Settings


class Sft:
    """The unit is the answer token, end token included; an example is right when all its tokens are the likeliest."""

    over: tuple[str, ...] = ("tokens",)
    metrics: tuple[str, ...] = Settings().metrics

    def units(self, batch: Batch) -> Units:
        return {"tokens": float(batch.loss_mask.sum())}

    def __call__(self, network: nn.Module, batch: Batch) -> ObjectiveOutput:
        found = answer_log_probs(network, batch, "likeliest")
        losses, right = -found.values, found.likeliest.float()  # [U]
        wrong_tokens = by_answer(1 - right, batch)  # [B]: each example has one answer
        units, examples = losses.new_full((), len(losses)), losses.new_full((), len(batch))
        return ObjectiveOutput(
            losses={"tokens": losses.sum()},
            example_losses=by_answer(losses.detach(), batch),
            metrics={
                "accuracy": ((wrong_tokens == 0).float().sum(), examples),
                "token_accuracy": (right.sum(), units),
            },
        )
