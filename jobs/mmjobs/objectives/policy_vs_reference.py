"""Compared: the answers of a batch as the policy and the reference see them, arranged for the terms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from mmjobs.data.batch import CORRUPTED, MISMATCHED, PLAIN, Batch
from mmjobs.objectives.forward import by_answer
from mmlaunch.recipe.objective import Preference as Settings

_BOUND = 80
"""Of exponents: beyond it fp32 overflows."""


@dataclass(frozen=True)
class Completion:
    """One answer of each of N examples."""

    logp: torch.Tensor  # [N], of the whole answer, to the policy
    mean: torch.Tensor  # [N], of one token of it
    ratio: torch.Tensor  # [N], the log-ratio of policy and reference
    known: torch.Tensor  # [N], the reference's part of it
    score: torch.Tensor  # [N], what the divergence makes of the ratio
    tokens: torch.Tensor  # [N]
    data: torch.Tensor  # [N], the score that the data give it


@dataclass(frozen=True)
class PolicyVsReference:
    """N pairs, and what else there is. A term makes one number of each pair."""

    beta: float
    chosen: Completion
    rejected: Completion
    corrupted: Completion
    """The chosen answers with spoiled images; those without images are 0, and have no tokens."""
    ratios: torch.Tensor  # [E, K], of all answers of all examples, best first
    there: torch.Tensor  # [E, K], which of them there are
    unpaired_label: torch.Tensor  # [E], 1 or -1 where the only answer is desirable or not
    mismatched: torch.Tensor  # [E], ratios of answers to something else
    paired: torch.Tensor  # [E], true for the N examples with two answers
    shift: float = 0.0
    """The mean of all earlier rewards."""
    spread: float = 1.0
    """Of the score gaps in the training data."""
    ahead: dict[str, torch.Tensor] | None = None
    """What the others of the global batch are to these, where a term wants to know."""

    @property
    def gap(self) -> torch.Tensor:
        """[N], how much better the chosen answer is to the policy than it was to the reference."""
        return self.chosen.score - self.rejected.score


class CompletionIndex:
    """Which answer of a batch stands where: [A] -> [N] and [E, K]."""

    def __init__(self, batch: Batch) -> None:
        answers, device = batch.answers, batch.answers.place.device
        plain = answers.kind == PLAIN
        examples = len(batch)
        widest = int(answers.place[plain].max()) + 1 if bool(plain.any()) else 1
        self.table = torch.full((examples, max(widest, 2)), -1, dtype=torch.long, device=device)  # [E, K]
        numbers = torch.arange(len(answers), device=device)
        self.table[answers.example[plain], answers.place[plain]] = numbers[plain]
        self.there = self.table >= 0
        self.paired = self.there[:, 1]
        self.chosen, self.rejected = self.table[self.paired, 0], self.table[self.paired, 1]
        self.corrupted = self._of_kind(answers.kind == CORRUPTED, answers.example, numbers)[self.paired]
        self.mismatched = self._of_kind(answers.kind == MISMATCHED, answers.example, numbers)
        first = self.table[:, 0].clamp_min(0)
        self.unpaired_label = torch.where(self.paired, 0, answers.unpaired_label[first] if len(answers) else first)

    def _of_kind(self, mine: torch.Tensor, example: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """[E], the number of the answer of this kind, or -1."""
        found = torch.full((len(self.table),), -1, dtype=torch.long, device=example.device)
        found[example[mine]] = numbers[mine]
        return found


def picked(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The values at these places, and 0 where a place is -1."""
    padded = torch.cat([values, values.new_zeros(1)])
    return padded[places]


def weights(batch: Batch, ld_alpha: float | None) -> torch.Tensor | None:
    """[U], of each token: those beyond the shorter answer's length count less (LD-DPO, eq. 9)."""
    if ld_alpha is None:
        return None
    answers = batch.answers
    owner = batch.owners[batch.loss_mask]  # [U]
    lengths = owner.bincount(minlength=len(answers))  # [A]
    plain = answers.kind == PLAIN
    shorter = lengths.new_full((len(batch),), torch.iinfo(torch.long).max)
    shorter = shorter.scatter_reduce(0, answers.example[plain], lengths[plain], "amin")
    starts = lengths.cumsum(0) - lengths
    order = owner.argsort(stable=True)
    place = torch.empty_like(owner)
    place[order] = torch.arange(len(owner), device=owner.device) - starts[owner[order]]
    whole = torch.ones(len(owner), dtype=torch.float64, device=owner.device)
    return whole.masked_fill(place >= shorter[answers.example[owner]], ld_alpha)


def divergence(ratio: torch.Tensor, kind: str, alpha: float) -> torch.Tensor:
    """f' of the ratio, whose logarithm is given (f-DPO, table 1)."""
    if kind == "forward_kl":
        return 1 - torch.exp((-ratio).clamp_max(_BOUND))
    if kind == "js":
        return math.log(2) + logsigmoid(ratio)
    if kind == "alpha" and alpha != 1:
        return torch.expm1(((alpha - 1) * ratio).clamp_max(_BOUND)) / (alpha - 1)
    return ratio


class CompletionSums:
    """Sums over the answers of a batch, with the weights of their tokens."""

    def __init__(self, batch: Batch, policy: torch.Tensor, reference: torch.Tensor, settings: Settings) -> None:
        self.arranged, self.owner = CompletionIndex(batch), batch.owners[batch.loss_mask]
        self.plain = batch.answers.kind[self.owner] == PLAIN  # [U]
        weight = weights(batch, settings.ld_alpha)
        factor = 1.0 if weight is None else weight.to(policy)
        self._logp = by_answer(policy * factor, batch)  # [A]
        self.known = by_answer(reference * factor, batch)
        # Token by token, before they are added up: the difference of two long sums would lose the last digits.
        self.ratio = by_answer((policy - reference) * factor, batch)
        self.tokens = by_answer(torch.ones_like(policy), batch)
        self._data, self._settings = batch.answers.score, settings

    def side(self, places: torch.Tensor) -> Completion:
        """The answers at these places, with zeros where there is none."""
        logp, ratio, tokens = (picked(values, places) for values in (self._logp, self.ratio, self.tokens))
        return Completion(
            logp=logp,
            mean=logp / tokens.clamp_min(1),
            ratio=ratio,
            known=picked(self.known, places),
            score=divergence(ratio, self._settings.divergence, self._settings.divergence_alpha),
            tokens=tokens,
            data=picked(self._data, places),
        )
