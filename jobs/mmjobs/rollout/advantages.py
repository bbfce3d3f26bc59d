"""Advantages: how much better each token of a rollout was than expected.

Every function takes whole rollouts: A answers of at most T tokens in the order of their prompts, n answers each.
"""

from __future__ import annotations

import torch

WHITENING = 1e-8
"""Added to a variance, so that a small one is not magnified without bound."""
_EQUAL = 1e-16
"""The variance of numbers that are equal but for rounding."""


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    gamma: float,
    lam: float,
    last: torch.Tensor | None = None,
) -> torch.Tensor:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16): [A, T] each -> [A, T]

    `last`: the value behind the last token of each answer, [A]; left out: 0. What stands outside the mask is not read.
    """
    advantages = torch.zeros_like(rewards)
    next_value = torch.zeros_like(rewards[:, 0]) if last is None else last
    next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        valid = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        next_advantage = torch.where(valid, advantage, next_advantage)
        next_value = torch.where(valid, values[:, t], next_value)
        advantages[:, t] = torch.where(valid, advantage, 0)
    return advantages


def whiten(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """Mean 0 and variance 1 over the tokens in the mask (with the population's variance): [A, T] -> [A, T]"""
    chosen = values[mask]
    if not len(chosen):
        return torch.zeros_like(values)
    mean = chosen.mean()
    whitened = (values - mean) / (chosen.var(correction=0) + WHITENING).sqrt()
    if bool(chosen.max() == chosen.min()):
        whitened = torch.zeros_like(values)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0)


def grpo(scores: torch.Tensor) -> torch.Tensor:
    """A group's scores less their mean, by their sample spread (arXiv 2402.03300, 4.1.2): [P, n] -> [P, n]"""
    centred, count = _centred(scores)
    variance = centred.square().nansum(1, keepdim=True) / (count - 1).clamp_min(1)
    return centred / (variance.sqrt() + 1e-6)


def dr_grpo(scores: torch.Tensor) -> torch.Tensor:
    """A group's scores less their mean (arXiv 2503.20783): [P, n] -> [P, n]"""
    return _centred(scores)[0]


def rloo(scores: torch.Tensor) -> torch.Tensor:
    """Each score less the mean of the others of its group (arXiv 2402.14740, eq. 8): [P, n] -> [P, n]"""
    centred, count = _centred(scores)
    return centred * count / (count - 1).clamp_min(1)


def remax(scores: torch.Tensor, greedy: torch.Tensor) -> torch.Tensor:
    """Each score less that of the likeliest answer (arXiv 2310.10505, algorithm 1): [P, n], [P] -> [P, n]"""
    return scores - greedy[:, None]


def reward_to_go(rewards: torch.Tensor, mask: torch.Tensor, gamma: float) -> torch.Tensor:
    """The discounted sum of the rewards from each token on (REINFORCE++, arXiv 2501.03262): [A, T] -> [A, T]"""
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)


def _centred(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores less the mean of those of the group that exist, and how many these are; equal ones are exactly 0.

    NaN is a missing score: it stays NaN. A score without another one in its group says nothing: it is 0.
    """
    exists = ~scores.isnan()
    count = exists.sum(1, keepdim=True)
    highest = scores.nan_to_num(-torch.inf).amax(1, keepdim=True)
    lowest = scores.nan_to_num(torch.inf).amin(1, keepdim=True)
    centred = scores - scores.nansum(1, keepdim=True) / count.clamp_min(1)
    return torch.where(exists & (highest == lowest), torch.zeros_like(scores), centred), count


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """1 - Var(G - V) / Var(G) over the tokens in the mask; 0 where the returns are all equal, but for rounding."""
    chosen, errors = returns[mask], (returns - values)[mask]
    if len(chosen) < 2 or float(chosen.var(correction=0)) < _EQUAL:
        return 0.0
    return 1 - float(errors.var(correction=0) / chosen.var(correction=0))
