"""A network that is a table: each place of a row has scores of its own, so losses can be compared with formulas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from tests.jobs.small import PIXELS
from torch import nn
from transformers import LlamaConfig

from mmjobs.data.batch import Batch, collate
from mmjobs.data.chat import Tokens
from mmjobs.data.encode import Encoded
from mmjobs.data.example import Origin

PROMPT = [5, 6, 7]
Rows = Sequence[Sequence[float]]


class _Places(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(shape, dtype=torch.float64))  # [B, T, D]
        self.layers = [nn.Identity()]
        self.config = LlamaConfig()

    def forward(self, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=self.table)


class _Score(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[:, 0]


class Table(nn.Module):
    """Its hidden states are the scores of all words, and the first of them is the value."""

    def __init__(self, batch: Batch, words: int) -> None:
        super().__init__()
        self.model, self.head, self.score, self.config = (
            _Places((*batch.ids.shape, words)),
            nn.Identity(),
            _Score(),
            LlamaConfig(),
        )
        self._read = batch.before[batch.loss_mask]

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def get_decoder(self) -> nn.Module:
        return self.model

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def set(self, scores: torch.Tensor) -> Table:
        """The scores from which each of the U tokens in the loss is predicted: [U, V]"""
        with torch.no_grad():
            self.model.table.flatten(0, 1)[self._read] = scores
        return self

    def grad(self) -> torch.Tensor:
        """The gradient in these scores [U, V]; there is none elsewhere, as in the prompt."""
        (whole,) = (self.model.table.grad,)
        assert whole is not None
        elsewhere = whole.flatten(0, 1).clone()
        elsewhere[self._read] = 0
        assert not elsewhere.any(), "only what predicts a token of an answer is learnt from"
        return whole.flatten(0, 1)[self._read]


def batch_of(values: Mapping[str, Rows], words: Sequence[Sequence[int]] | None = None) -> Batch:
    """Answers to one prompt, a row each, with these values of their tokens. The words are 0 if nothing else is said."""
    lengths = [len(row) for row in next(iter(values.values()))]
    answers = words or [[0] * length for length in lengths]
    one = Encoded(
        prompt=Tokens(PROMPT, [False] * len(PROMPT)),
        answers=tuple(Tokens(list(ids), [True] * len(ids)) for ids in answers),
        scores=(None,) * len(answers),
        image_inputs={},
        origin=Origin("here", 1),
        token_values={
            name: torch.tensor([v for row in rows for v in row], dtype=torch.float64) for name, rows in values.items()
        },
    )
    return collate([one], PIXELS, padding=0)
