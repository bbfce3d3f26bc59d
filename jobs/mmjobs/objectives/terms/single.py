"""Terms that judge each answer for itself: what is chosen is to become likelier, what is rejected is not."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from mmjobs.objectives.policy_vs_reference import PolicyVsReference
from mmjobs.objectives.terms.term import term
from mmlaunch.recipe.terms import Anchor, Kto, Term


@term()
def anchor(pairs: PolicyVsReference, options: Anchor) -> torch.Tensor:
    """mDPO (eq. 4): keeps the chosen answer from becoming less likely than it was."""
    return -logsigmoid(pairs.beta * pairs.chosen.log_ratio - options.delta)


@term()
def bco(pairs: PolicyVsReference, options: Term) -> torch.Tensor:
    """BCO (MPO, eq. 5): good and bad answers apart, on either side of the mean of all earlier rewards."""
    good, bad = (pairs.beta * side.log_ratio - pairs.shift for side in (pairs.chosen, pairs.rejected))
    return -logsigmoid(good) - logsigmoid(-bad)


@term()
def nca(pairs: PolicyVsReference, options: Term) -> torch.Tensor:
    """NCA for pairs: also keeps the chosen answer's probability up."""
    good, bad = (pairs.beta * side.log_ratio for side in (pairs.chosen, pairs.rejected))
    return -logsigmoid(good) - 0.5 * logsigmoid(-good) - 0.5 * logsigmoid(-bad)


@term()
def sppo(pairs: PolicyVsReference, options: Term) -> torch.Tensor:
    """SPPO with hard labels: log-ratios of plus and minus 1 / (2 beta)."""
    target = 1 / (2 * pairs.beta)
    return (pairs.chosen.log_ratio - target) ** 2 + (pairs.rejected.log_ratio + target) ** 2


@term()
def apo_zero(pairs: PolicyVsReference, options: Term) -> torch.Tensor:
    """APO-zero: chosen up, rejected down; for chosen answers that are better than the model's own."""
    good, bad = (pairs.beta * side.log_ratio for side in (pairs.chosen, pairs.rejected))
    return 1 - torch.sigmoid(good) + torch.sigmoid(bad)


@term()
def apo_down(pairs: PolicyVsReference, options: Term) -> torch.Tensor:
    """APO-down: both down, the rejected further; for chosen answers that are worse than the model's own."""
    good = pairs.beta * pairs.chosen.log_ratio
    return torch.sigmoid(good) + 1 - torch.sigmoid(good - pairs.beta * pairs.rejected.log_ratio)


@term(by_example=True, needs_global_batch=True)
def kto(pairs: PolicyVsReference, options: Kto) -> torch.Tensor:
    """KTO (eq. 8), the mean over an example's answers: [E]. A pair is one desirable answer and one that is not."""
    assert pairs.global_batch is not None
    rewards = pairs.beta * pairs.log_ratios  # [E, K]
    best = torch.zeros_like(pairs.exists)
    best[:, 0] = True
    desirable = torch.where(pairs.paired[:, None], best, (pairs.unpaired_label > 0)[:, None])
    point = pairs.beta * pairs.global_batch["point"]
    gain = options.desirable * (1 - torch.sigmoid(rewards - point))
    loss = options.undesirable * (1 - torch.sigmoid(point - rewards))
    each = torch.where(desirable, gain, loss) * pairs.exists
    return each.sum(1) / pairs.exists.sum(1).clamp_min(1)
