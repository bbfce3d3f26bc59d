"""Terms over something else than a pair of answers: the same answer twice, or all answers of an example."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from mmjobs.objectives.policy_vs_reference import PolicyVsReference
from mmjobs.objectives.terms.term import term
from mmlaunch.recipe.terms import Term


@term()
def image_conditional(pairs: PolicyVsReference, options: Term) -> torch.Tensor:
    """mDPO (eq. 3): the chosen answer with its image against the same with a corrupted one; 0 without an image."""
    loss = -logsigmoid(pairs.beta * (pairs.chosen.score - pairs.corrupted.score))
    return torch.where(pairs.corrupted.tokens > 0, loss, 0)


@term(by_example=True)
def plackett_luce(pairs: PolicyVsReference, options: Term) -> torch.Tensor:
    """DPO over K ranked answers (DPO, eq. 20): each is the best of those that are left: [E]."""
    return ranked(pairs.beta * pairs.log_ratios, pairs.exists, pairs.data_scores)


def ranked(scores: torch.Tensor, exists: torch.Tensor, data_scores: torch.Tensor | None = None) -> torch.Tensor:
    """-log of the chance of this order under scores: [E, K], best first -> [E]. Finite for scores of any size, and as
    exact for those that are all large as for small ones: what they have in common is no part of it.

    Answers to which the data give the same score ([E, K], NaN: none) are a tie: each of them has to be better than
    those of lower scores, and none than its equals.
    """
    exact = scores.double()
    hidden = exact.masked_fill(~exists, torch.finfo(exact.dtype).min)
    left = hidden.flip(1).logcumsumexp(1).flip(1)  # [E, K], over each and those behind it
    if data_scores is not None:
        equal = equals(data_scores, exists)  # [E, K, K]
        behind = torch.ones_like(equal).triu() & ~(equal & ~torch.eye(equal.shape[1], dtype=torch.bool).to(equal))
        rest = hidden[:, None, :].expand(equal.shape).masked_fill(~behind, torch.finfo(exact.dtype).min)
        left = torch.where(equal.sum(2) > 1, rest.logsumexp(2), left)
    losses = torch.where(exists, left - exact, 0).sum(1)
    return losses.float() if scores.dtype in (torch.float16, torch.bfloat16) else losses.to(scores.dtype)


def equals(data_scores: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
    """Which answers of an example the data hold for equally good: [E, K] -> [E, K, K]."""
    same = data_scores[:, :, None] == data_scores[:, None, :]  # NaN is equal to nothing
    return same & exists[:, :, None] & exists[:, None, :]
