"""Policy versus reference: the log-probabilities of a batch's answers, arranged in pairs for the preference terms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from mmjobs.data.batch import CORRUPTED, MISMATCHED, PLAIN, Answers, Batch, sent
from mmjobs.objectives.forward import by_answer
from mmjobs.objectives.objective import Statistics
from mmlaunch.recipe.preference import Preference as Settings

_BOUND = 80
"""The largest exponent: beyond it fp32 overflows."""


@dataclass(frozen=True)
class Completion:
    """One answer of each of N examples."""

    logp: torch.Tensor  # [N], log-probability of the whole answer under the policy
    mean_logp: torch.Tensor  # [N], the same for each token on average
    log_ratio: torch.Tensor  # [N], log-probability under the policy minus that under the reference
    reference_logp: torch.Tensor  # [N], log-probability under the reference
    score: torch.Tensor  # [N], the log-ratio after the divergence (f-DPO)
    tokens: torch.Tensor  # [N]
    data_score: torch.Tensor  # [N], the score that the data give it


@dataclass(frozen=True)
class PolicyVsReference:
    """N pairs among E examples. A term computes one loss for each pair, or for each example."""

    beta: float
    chosen: Completion
    rejected: Completion
    corrupted: Completion
    """The chosen answers with corrupted images; those without images are 0, and have no tokens."""
    log_ratios: torch.Tensor  # [E, K], of all answers of all examples, best first
    exists: torch.Tensor  # [E, K], which of these answers exist
    unpaired_label: torch.Tensor  # [E], 1 or -1 where the only answer is desirable or not
    mismatched: torch.Tensor  # [E], log-ratios of answers to other prompts
    paired: torch.Tensor  # [E], true for the N examples with two answers
    data_scores: torch.Tensor | None = None  # [E, K], the scores that the data give, NaN where they give none
    shift: float = 0.0
    """The mean of all earlier rewards (BCO)."""
    std: float = 1.0
    """The standard deviation of the score gaps in the training data."""
    global_batch: Statistics | None = None
    """What a term needs to know of the other examples of the global batch."""

    @property
    def gap(self) -> torch.Tensor:
        """[N], how much the policy prefers the chosen answer, compared with the reference."""
        return self.chosen.score - self.rejected.score


@dataclass(frozen=True)
class CompletionIndex:
    """Where the chosen, rejected, corrupted and mismatched answers stand among the A answers of a batch.

    The CPU works it out while a GPU computes, and sends it there; numbers are of answers where nothing else is said.
    """

    table: torch.Tensor  # [E, K], of all answers, best first; -1 where there is none
    exists: torch.Tensor  # [E, K]
    paired: torch.Tensor  # [E], whether there are two answers
    unpaired_label: torch.Tensor  # [E], 1 or -1 where the only answer is desirable or not
    pairs: torch.Tensor  # [N], numbers of the examples with two answers
    desirable: torch.Tensor  # numbers of the examples whose only answer is
    undesirable: torch.Tensor  # the same of those whose only answer is not
    chosen: torch.Tensor  # [N]
    rejected: torch.Tensor  # [N]
    corrupted: torch.Tensor  # [N], -1 without an image
    corrupted_pairs: torch.Tensor  # numbers of the pairs that have a corrupted answer with a token in the loss
    mismatched: torch.Tensor  # of those that exist
    owner: torch.Tensor  # [U], of each token in the loss
    plain: torch.Tensor  # numbers of the tokens of plain answers
    in_chosen: torch.Tensor  # numbers of the tokens of the best answers

    @classmethod
    def of(cls, batch: Batch) -> CompletionIndex:
        """The index of a batch, on its device."""
        host, device = batch.host or batch, batch.ids.device
        return cls(**{name: sent(values, device) for name, values in _arranged(host).items()})


def _arranged(batch: Batch) -> dict[str, torch.Tensor]:
    answers, owner = batch.answers, batch.in_loss(batch.owners)
    plain = answers.kind == PLAIN
    widest = int(answers.place[plain].max()) + 1 if bool(plain.any()) else 1
    numbers = torch.arange(len(answers))
    table = torch.full((len(batch), max(widest, 2)), -1, dtype=torch.long)
    table[answers.example[plain], answers.place[plain]] = numbers[plain]
    exists = table >= 0
    paired = exists[:, 1]
    first = table[:, 0].clamp_min(0)
    label = torch.where(paired, 0, answers.unpaired_label[first] if len(answers) else first)
    corrupted, mismatched = (_of_kind(answers, kind, len(batch)) for kind in (CORRUPTED, MISMATCHED))
    corrupted = corrupted[paired]
    tokens = torch.bincount(owner, minlength=len(answers))
    best = plain & (answers.place == 0)
    return {
        "table": table, "exists": exists, "paired": paired, "unpaired_label": label, "pairs": _where(paired),
        "desirable": _where(label == 1), "undesirable": _where(label == -1), "chosen": table[paired, 0],
        "rejected": table[paired, 1], "corrupted": corrupted, "corrupted_pairs": _where(pick(tokens, corrupted) > 0),
        "mismatched": mismatched[mismatched >= 0], "owner": owner, "plain": _where(plain[owner]),
        "in_chosen": _where(best[owner]),
    }  # fmt: skip


def _of_kind(answers: Answers, kind: int, examples: int) -> torch.Tensor:
    """[E], the number of the answer of this kind, or -1."""
    index, is_kind = torch.full((examples,), -1, dtype=torch.long), answers.kind == kind
    index[answers.example[is_kind]] = torch.arange(len(answers))[is_kind]
    return index


def _where(mask: torch.Tensor) -> torch.Tensor:
    return mask.nonzero()[:, 0]


def pick(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The values at these indices, and 0 where an index is -1."""
    padded = torch.cat([values, values.new_zeros(1)])
    return padded[index]


def length_weights(batch: Batch, ld_alpha: float | None) -> torch.Tensor | None:
    """[U], the weight of each token: those beyond the shorter answer's length count less (LD-DPO, eq. 9)."""
    if ld_alpha is None:
        return None
    device, batch = batch.ids.device, batch.host or batch
    answers, owner = batch.answers, batch.in_loss(batch.owners)  # [U]
    lengths = owner.bincount(minlength=len(answers))  # [A]
    plain = answers.kind == PLAIN
    shorter = lengths.new_full((len(batch),), torch.iinfo(torch.long).max)
    shorter = shorter.scatter_reduce(0, answers.example[plain], lengths[plain], "amin")
    starts = lengths.cumsum(0) - lengths
    order = owner.argsort(stable=True)
    place = torch.empty_like(owner)
    place[order] = torch.arange(len(owner)) - starts[owner[order]]
    ones = torch.ones(len(owner), dtype=torch.float64)
    return sent(ones.masked_fill(place >= shorter[answers.example[owner]], ld_alpha), device)


def divergence(log_ratio: torch.Tensor, kind: str, alpha: float) -> torch.Tensor:
    """f' of the ratio whose logarithm is given (f-DPO, table 1)."""
    if kind == "forward_kl":
        return 1 - torch.exp((-log_ratio).clamp_max(_BOUND))
    if kind == "js":
        return math.log(2) + logsigmoid(log_ratio)
    if kind == "alpha" and alpha != 1:
        return torch.expm1(((alpha - 1) * log_ratio).clamp_max(_BOUND)) / (alpha - 1)
    return log_ratio


class CompletionSums:
    """Log-probabilities summed over the tokens of each answer of a batch, with the weights of its tokens."""

    def __init__(self, batch: Batch, policy: torch.Tensor, reference: torch.Tensor, settings: Settings) -> None:
        """`policy`, `reference`: [U], log-probabilities of the tokens in the loss."""
        self.index = CompletionIndex.of(batch)
        weights = length_weights(batch, settings.ld_alpha)
        factor = 1.0 if weights is None else weights.to(policy)
        self._logp = by_answer(policy * factor, batch)  # [A]
        self._reference_logp = by_answer(reference * factor, batch)
        # Token by token, before they are added up: the difference of two long sums would lose the last digits.
        self.log_ratio = by_answer((policy - reference) * factor, batch)
        self.tokens = by_answer(torch.ones_like(policy), batch)
        self._data_score, self._settings = batch.answers.score, settings

    def completion(self, index: torch.Tensor) -> Completion:
        """The answers with these numbers; zeros where a number is -1."""
        logp, log_ratio, tokens = (pick(values, index) for values in (self._logp, self.log_ratio, self.tokens))
        return Completion(
            logp=logp,
            mean_logp=logp / tokens.clamp_min(1),
            log_ratio=log_ratio,
            reference_logp=pick(self._reference_logp, index),
            score=divergence(log_ratio, self._settings.divergence, self._settings.divergence_alpha),
            tokens=tokens,
            data_score=pick(self._data_score, index),
        )
