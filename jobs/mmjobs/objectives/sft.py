"""Supervised fine-tuning: the negative log-probability of every answer token."""

from __future__ import annotations

from torch import nn
from torch.nn.functional import cross_entropy

from mmjobs.data.batch import NOT_LEARNT, Batch
from mmjobs.model import side_by_side
from mmjobs.objectives.measured import Measured


class Sft:
    """The unit is the answer token, end token included; an example is right when all its tokens are the likeliest."""

    metrics: tuple[str, ...] = ("loss", "accuracy", "token_accuracy")
    answers = 1
    read: int | None = 1

    def units(self, batch: Batch) -> float:
        return float((batch.targets[:, 1:] != NOT_LEARNT).sum())

    def __call__(self, network: nn.Module, batch: Batch) -> Measured:
        hidden = network.get_submodule("model")(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            position_ids=batch.positions,
            **batch.seen,
            **side_by_side.arguments(network, batch.lengths),
            use_cache=False,
        ).last_hidden_state  # [B, T, D]
        learnt = batch.targets[:, 1:] != NOT_LEARNT  # [B, T - 1], where the next token is one of the answer
        # Only where a token is learnt: logits of the whole batch would be the largest tensor of all.
        logits = network.get_submodule("lm_head")(hidden[:, :-1][learnt]).float()  # [U, V]
        wanted = batch.targets[:, 1:][learnt]  # [U]
        losses = cross_entropy(logits, wanted, reduction="none")  # [U]
        owner = batch.owners[:, 1:][learnt]  # [U], the example of each token
        each = losses.new_zeros(len(batch)).index_add(0, owner, losses.detach())
        right = (logits.detach().argmax(-1) == wanted).float()
        wrong_tokens = losses.new_zeros(len(batch)).index_add(0, owner, 1 - right)
        units, examples = losses.new_tensor(len(wanted)), losses.new_tensor(len(batch))
        return Measured(
            loss=losses.sum(),
            each=each,
            metrics={
                "loss": (losses.detach().sum(), units),
                "accuracy": ((wrong_tokens == 0).float().sum(), examples),
                "token_accuracy": (right.sum(), units),
            },
        )
