"""Terms over pairs, most of them over D: how much better the chosen answer has become, next to the rejected one."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import logsigmoid

from mmjobs.objectives.policy_vs_reference import PolicyVsReference
from mmjobs.objectives.terms.term import term
from mmlaunch.recipe.terms import Discopop, Exo, Margin, Simpo, Smoothed, Term

_ROOT = 1e18
"""The most that can be squared in fp32."""


@term()
def sigmoid(pairs: PolicyVsReference, options: Smoothed) -> torch.Tensor:
    """DPO (eq. 7), with the smoothing of cDPO."""
    return smoothed(pairs.beta * pairs.gap, options.label_smoothing)


def smoothed(x: torch.Tensor, wrong: float | torch.Tensor) -> torch.Tensor:
    """The cross-entropy of a comparison whose label is wrong with this chance."""
    return -(1 - wrong) * logsigmoid(x) - wrong * logsigmoid(-x)


@term()
def robust(pairs: PolicyVsReference, options: Smoothed) -> torch.Tensor:
    """rDPO (eq. 12): unbiased under labels that are wrong with this chance."""
    x, wrong = pairs.beta * pairs.gap, options.label_smoothing
    return (-(1 - wrong) * logsigmoid(x) + wrong * logsigmoid(-x)) / (1 - 2 * wrong)


@term()
def margin(pairs: PolicyVsReference, options: Margin) -> torch.Tensor:
    """MMPO (eq. 8): the best is where beta D = gamma x score gap, so a tie pushes nothing."""
    p = soft_labels(pairs, options)
    x = pairs.beta * pairs.gap
    return -p * logsigmoid(x) - (1 - p) * logsigmoid(-x)


def soft_labels(pairs: PolicyVsReference, options: Margin) -> torch.Tensor:
    """How sure it is that the chosen answer is the better one: [N]"""
    gap = pairs.chosen.data_score - pairs.rejected.data_score
    std = 1.0 if options.scores == "as they are" else pairs.std
    return torch.sigmoid(options.gamma * gap / std).to(pairs.gap.dtype)


@term()
def hinge(pairs: PolicyVsReference, options: Term) -> torch.Tensor:
    """SLiC: nothing more to gain beyond a margin of 1."""
    return torch.relu(1 - pairs.beta * pairs.gap)


@term()
def ipo(pairs: PolicyVsReference, options: Term) -> torch.Tensor:
    """IPO (eq. 17), over the mean of an answer's tokens: a margin of 1 / (2 beta), and no more."""
    each = [side.score / side.tokens.clamp_min(1) for side in (pairs.chosen, pairs.rejected)]
    return (each[0] - each[1] - 1 / (2 * pairs.beta)).clamp(-_ROOT, _ROOT) ** 2


@term()
def exo(pairs: PolicyVsReference, options: Exo) -> torch.Tensor:
    """EXO for pairs: reverse KL to the smoothed preference."""
    x, wrong = pairs.beta * pairs.gap, options.label_smoothing
    right, left = logsigmoid(x) - math.log1p(-wrong), logsigmoid(-x) - math.log(wrong)
    return torch.sigmoid(x) * right + torch.sigmoid(-x) * left


@term()
def discopop(pairs: PolicyVsReference, options: Discopop) -> torch.Tensor:
    """DiscoPOP: logistic and exponential loss, blended by the ratio itself. Written so that no half is 0 x infinity."""
    x = pairs.beta * pairs.gap
    blend = torch.sigmoid(x / options.tau)
    return (1 - blend) * -logsigmoid(x) + torch.exp(logsigmoid(x / options.tau) - x)


@term(needs_global_batch=True)
def aot(pairs: PolicyVsReference, options: Smoothed) -> torch.Tensor:
    """AOT: the whole distribution of chosen answers is to be better, so ranks are compared and not pairs.

    Each value meets the one of the same rank in the global batch; `look_ahead` has found it.
    """
    assert pairs.global_batch is not None
    beta, matches = pairs.beta, pairs.global_batch
    if "paired" in matches:
        policy = pairs.chosen.logp - pairs.rejected.logp
        return smoothed(beta * (policy - matches["paired"]), options.label_smoothing)
    # Each loss pulls at two ratios that may belong to different ranks: both pull at their own, and it counts once.
    mine = smoothed(beta * (pairs.chosen.log_ratio - matches["rejected"]), options.label_smoothing)
    its = smoothed(beta * (matches["chosen"] - pairs.rejected.log_ratio), options.label_smoothing)
    return mine + its - ((mine + its) / 2).detach()


@term()
def simpo(pairs: PolicyVsReference, options: Simpo) -> torch.Tensor:
    """SimPO (eq. 6): mean log-probabilities, no reference; gamma is the margin itself."""
    return -logsigmoid(pairs.beta * (pairs.chosen.mean_logp - pairs.rejected.mean_logp) - options.gamma)


@term()
def orpo(pairs: PolicyVsReference, options: Term) -> torch.Tensor:
    """ORPO's odds ratio (eq. 7), over mean log-probabilities; its supervised half is the term sft."""
    chosen, rejected = (
        side.mean_logp - torch.log(-torch.expm1(side.mean_logp.clamp_max(-1e-7)))
        for side in (pairs.chosen, pairs.rejected)
    )
    return -logsigmoid(chosen - rejected)
