"""Terms over pairs, most of them over D: how much better the chosen answer has become, next to the rejected one."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import logsigmoid

from mmjobs.objectives.policy_vs_reference import PolicyVsReference
from mmlaunch.recipe.terms import Discopop, Exo, Margin, Simpo, Smoothed, Term

_ROOT = 1e18
"""The most that can be squared in fp32."""


def sigmoid(pairs: PolicyVsReference, term: Smoothed) -> torch.Tensor:
    """DPO (eq. 7), with the smoothing of cDPO."""
    return smoothed(pairs.beta * pairs.gap, term.label_smoothing)


def smoothed(x: torch.Tensor, wrong: float | torch.Tensor) -> torch.Tensor:
    """The cross-entropy of a comparison whose label is wrong with this chance."""
    return -(1 - wrong) * logsigmoid(x) - wrong * logsigmoid(-x)


def robust(pairs: PolicyVsReference, term: Smoothed) -> torch.Tensor:
    """rDPO (eq. 12): unbiased under labels that are wrong with this chance."""
    x, wrong = pairs.beta * pairs.gap, term.label_smoothing
    return (-(1 - wrong) * logsigmoid(x) + wrong * logsigmoid(-x)) / (1 - 2 * wrong)


def margin(pairs: PolicyVsReference, term: Margin) -> torch.Tensor:
    """MMPO (eq. 8): the best is where beta D = gamma x score gap, so a tie pushes nothing."""
    p = labels(pairs, term)
    x = pairs.beta * pairs.gap
    return -p * logsigmoid(x) - (1 - p) * logsigmoid(-x)


def labels(pairs: PolicyVsReference, term: Margin) -> torch.Tensor:
    """How sure it is that the chosen answer is the better one: [N]"""
    gap = pairs.chosen.data - pairs.rejected.data
    spread = 1.0 if term.scores == "as they are" else pairs.spread
    return torch.sigmoid(term.gamma * gap / spread).to(pairs.gap.dtype)


def hinge(pairs: PolicyVsReference, term: Term) -> torch.Tensor:
    """SLiC: nothing more to gain beyond a margin of 1."""
    return torch.relu(1 - pairs.beta * pairs.gap)


def ipo(pairs: PolicyVsReference, term: Term) -> torch.Tensor:
    """IPO (eq. 17), over the mean of an answer's tokens: a margin of 1 / (2 beta), and no more."""
    each = [side.score / side.tokens.clamp_min(1) for side in (pairs.chosen, pairs.rejected)]
    return (each[0] - each[1] - 1 / (2 * pairs.beta)).clamp(-_ROOT, _ROOT) ** 2


def exo(pairs: PolicyVsReference, term: Exo) -> torch.Tensor:
    """EXO for pairs: reverse KL to the smoothed preference."""
    x, wrong = pairs.beta * pairs.gap, term.label_smoothing
    right, left = logsigmoid(x) - math.log1p(-wrong), logsigmoid(-x) - math.log(wrong)
    return torch.sigmoid(x) * right + torch.sigmoid(-x) * left


def discopop(pairs: PolicyVsReference, term: Discopop) -> torch.Tensor:
    """DiscoPOP: logistic and exponential loss, blended by the ratio itself. Written so that no half is 0 x infinity."""
    x = pairs.beta * pairs.gap
    blend = torch.sigmoid(x / term.tau)
    return (1 - blend) * -logsigmoid(x) + torch.exp(logsigmoid(x / term.tau) - x)


def aot(pairs: PolicyVsReference, term: Smoothed) -> torch.Tensor:
    """AOT: the whole distribution of chosen answers is to be better, so ranks are compared and not pairs.

    Each value meets the one of the same rank in the global batch; `look_ahead` has found it.
    """
    assert pairs.ahead is not None
    beta, ahead = pairs.beta, pairs.ahead
    if "paired" in ahead:
        policy = pairs.chosen.logp - pairs.rejected.logp
        return smoothed(beta * (policy - ahead["paired"]), term.label_smoothing)
    # Each loss pulls at two ratios that may belong to different ranks: both pull at their own, and it counts once.
    mine = smoothed(beta * (pairs.chosen.ratio - ahead["rejected"]), term.label_smoothing)
    its = smoothed(beta * (ahead["chosen"] - pairs.rejected.ratio), term.label_smoothing)
    return mine + its - ((mine + its) / 2).detach()


def simpo(pairs: PolicyVsReference, term: Simpo) -> torch.Tensor:
    """SimPO (eq. 6): mean log-probabilities, no reference; gamma is the margin itself."""
    return -logsigmoid(pairs.beta * (pairs.chosen.mean - pairs.rejected.mean) - term.gamma)


def orpo(pairs: PolicyVsReference, term: Term) -> torch.Tensor:
    """ORPO's odds ratio (eq. 7), over mean log-probabilities; its supervised half is the term sft."""
    odds = [side.mean - torch.log(-torch.expm1(side.mean.clamp_max(-1e-7))) for side in (pairs.chosen, pairs.rejected)]
    return -logsigmoid(odds[0] - odds[1])
