"""What is learnt from a rollout: rewards become advantages and returns, in the one order that is right.

Scores are shaped; the KL penalty joins the reward of each token, or of the whole answer before groups are compared;
advantages are estimated, returns are taken from them, and only then are they whitened.
"""

from __future__ import annotations

from typing import Any

import torch

from mmjobs.objectives.policy import ADVANTAGE, OLD, REFERENCE, VALID
from mmjobs.objectives.value import RETURN, VALUE
from mmjobs.rollout import advantages
from mmjobs.rollout.rollout import Rollout
from mmjobs.rollout.shaping import KlCoefficient, RunningStatistics, scaled, shaped
from mmlaunch.recipe.reinforcement import Ppo, Reinforcement

LAST, BASELINE = "last value", "baseline"
"""The value behind the last token of each answer, [A, T] and the same for all its tokens; the penalised score of the
likeliest answer to its prompt, [A, 1]."""


def learn(
    rollout: Rollout, settings: Reinforcement, statistics: RunningStatistics, coefficient: KlCoefficient
) -> dict[str, float]:
    """Add advantages, returns and what is learnt from at all to a rollout; what there is to know about it."""
    usable = rollout.scores.isfinite()  # a score that overflowed, or has nothing to be compared with, is missing
    if BASELINE in rollout.numbers:
        usable &= rollout.numbers[BASELINE][:, 0].isfinite()
    rollout.scores = torch.where(usable, rollout.scores, torch.nan)
    lengths, valid, numbers = rollout.lengths.double(), rollout.valid, rollout.numbers
    longest = settings.sampling.max_new_tokens
    rewards, clipped = shaped(rollout.scores, lengths, rollout.ended, longest, settings.shaping, statistics)  # [A]
    penalty = torch.zeros_like(valid, dtype=torch.float64)  # [A, T]
    measured: dict[str, float] = {}
    if settings.kl.used:
        divergence = torch.where(valid, numbers[OLD] - numbers[REFERENCE], 0)  # k1
        measured = _divergence(divergence, valid)
        if settings.kl.place == "reward":
            penalty = coefficient.value * divergence
    if isinstance(settings, Ppo):
        measured |= _with_critic(rollout, settings, rewards, penalty)
    else:
        measured |= _in_groups(rollout, settings, rewards, penalty, statistics)
    numbers[VALID] = valid.double()
    chosen = numbers[ADVANTAGE][valid]
    spread = float(chosen.std(correction=0)) if len(chosen) else 0.0
    measured |= _of_scores(rollout, settings, rewards) | {"reward_clipped": clipped / max(1, len(rewards))}
    measured |= {"advantage": float(chosen.mean()) if len(chosen) else 0.0, "advantage_std": spread}
    if settings.kl.used:
        measured["kl_weight"] = coefficient.value
        coefficient.update(measured["kl_sequence"], int(valid.any(1).sum()))
    return measured


def _with_critic(rollout: Rollout, settings: Ppo, rewards: torch.Tensor, penalty: torch.Tensor) -> dict[str, float]:
    valid, numbers = rollout.valid, rollout.numbers
    values = torch.where(valid, numbers[VALUE], 0)
    each = _at_the_end(rewards, rollout) - penalty
    if settings.whiten_rewards:
        each = advantages.whiten(each, valid, shift_mean=False)
    last = None
    if settings.bootstrap_truncated:
        last = torch.where(rollout.ended, 0, numbers[LAST][:, 0])
    estimated = advantages.gae(each, values, valid, settings.gamma, settings.lam, last)
    lam = settings.lam if settings.value_lam is None else settings.value_lam
    returns = advantages.gae(each, values, valid, settings.gamma, lam, last) + values
    numbers[RETURN] = torch.where(valid, returns, 0)
    numbers[ADVANTAGE] = advantages.whiten(estimated, valid) if settings.whiten else estimated
    numbers[VALUE] = values
    return {"explained_variance": advantages.explained_variance(values, returns, valid)}


def _in_groups(
    rollout: Rollout, settings: Any, rewards: torch.Tensor, penalty: torch.Tensor, statistics: RunningStatistics
) -> dict[str, float]:
    """The penalty of a whole answer is part of its reward before groups are compared."""
    shape, valid, how = (len(rollout.prompts), rollout.answers), rollout.valid, settings.advantage
    if how == "reinforce++":
        centred = advantages.dr_grpo(rewards.view(shape)).flatten() if shape[1] > 1 else rewards
        each = _at_the_end(centred, rollout) - penalty
        estimated = advantages.whiten(advantages.reward_to_go(each, valid, 1.0), valid)
    else:
        groups = (rewards - penalty.sum(1)).view(shape)
        if how == "remax":
            greedy, _ = scaled(rollout.numbers[BASELINE][:, 0].view(shape)[:, 0], settings.shaping, statistics)
            compared = advantages.remax(groups, greedy)
        else:
            compared = {"grpo": advantages.grpo, "dr_grpo": advantages.dr_grpo, "rloo": advantages.rloo}[how](groups)
        estimated = compared.flatten()[:, None].expand(valid.shape)
    rollout.numbers[ADVANTAGE] = torch.where(valid, estimated, 0)
    scores = rollout.scores.view(shape)
    flat = (scores.nan_to_num(-torch.inf).amax(1) == scores.nan_to_num(torch.inf).amin(1)) | scores.isnan().all(1)
    return {"flat_groups": float(flat.double().mean())}


def _at_the_end(rewards: torch.Tensor, rollout: Rollout) -> torch.Tensor:
    """The reward of each answer on its last token, which is the one that ends it: [A] -> [A, T]"""
    each = torch.zeros(rollout.ids.shape, dtype=torch.float64)
    each[torch.arange(len(rewards)), rollout.lengths - 1] = rewards.nan_to_num(0.0)
    return each


def _divergence(divergence: torch.Tensor, valid: torch.Tensor) -> dict[str, float]:
    answers = valid.any(1)
    per_sequence = float(divergence[answers].sum(1).mean()) if answers.any() else 0.0
    return {"kl_sequence": per_sequence, "kl_token": float(divergence.sum() / valid.sum().clamp_min(1))}


def _of_scores(rollout: Rollout, settings: Reinforcement, rewards: torch.Tensor) -> dict[str, float]:
    exists = ~rollout.scores.isnan()
    scores, shaped_rewards = rollout.scores[exists], rewards[exists]
    none = not len(scores)
    return {
        "reward": 0.0 if none else float(scores.mean()),
        "reward_std": 0.0 if none else float(scores.std(correction=0)),
        "reward_shaped": 0.0 if none else float(shaped_rewards.mean()),
        "reward_missing": 1 - float(exists.double().mean()),
        "length": float(rollout.lengths.double().mean()),
        "truncated": 1 - float(rollout.ended.double().mean()),
    }
