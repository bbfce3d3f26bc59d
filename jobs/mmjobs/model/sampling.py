"""Sampling: the next token of an answer, drawn by numbers that depend on the answer and the position alone.

One uniform number decides each token, by the inverse of the cumulative distribution. So an answer does not depend on
which other answers are generated beside it, nor on the number of ranks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch

from mmjobs.data.sampler import seed_of
from mmlaunch.recipe.sampling import Sampling


class Drawn(NamedTuple):
    """One token of each answer."""

    tokens: torch.Tensor  # [B]
    log_probs: torch.Tensor  # [B], at the sampling temperature, over the whole vocabulary


class Draws:
    """A uniform number in [0, 1) for each position of an answer."""

    def __init__(self, seed: int, prompt: int, answer: int) -> None:
        """`prompt`: its index in the order of the run; `answer`: its number among those of the same prompt."""
        self.seed = seed_of("answer", seed, prompt, answer)
        """For engines that draw in their own way."""
        self._stream = random.Random(self.seed)

    def next(self) -> float:
        """The number of the next position."""
        return self._stream.random()


def draw(scores: torch.Tensor, uniform: Sequence[float], sampling: Sampling, banned: torch.Tensor) -> Drawn:
    """Draw a token from each row of scores [B, V] before temperature; those in `banned` [V] are never drawn."""
    exact = scores if scores.dtype == torch.float64 else scores.float()
    if not sampling.temperature:
        tokens = exact.masked_fill(banned, -torch.inf).argmax(-1)
        return Drawn(tokens, _log_probs(exact, tokens))
    exact = exact / sampling.temperature
    allowed = truncated(exact.masked_fill(banned, -torch.inf), sampling.top_k, sampling.top_p)
    cumulative = allowed.double().softmax(-1).cumsum(-1)  # [B, V]
    at = torch.tensor(uniform, dtype=torch.float64, device=scores.device)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, at, right=True)[:, 0]  # the first token whose share reaches behind it
    tokens = tokens.clamp(max=scores.shape[-1] - 1)  # there is none where scores are not finite: the caller sees NaN
    return Drawn(tokens, _log_probs(exact, tokens))


def truncated(scores: torch.Tensor, top_k: int | None, top_p: float) -> torch.Tensor:
    """Scores [B, V] where only the likeliest tokens are left: `top_k` of them, that have `top_p` together."""
    if top_k is not None and top_k < scores.shape[-1]:
        smallest = scores.topk(top_k).values[:, -1:]
        scores = scores.masked_fill(scores < smallest, -torch.inf)
    if top_p < 1:
        ordered, places = torch.sort(scores, dim=-1, descending=True, stable=True)
        before = ordered.double().softmax(-1).cumsum(-1) - ordered.double().softmax(-1)
        dropped = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, places, before >= top_p)
        scores = scores.masked_fill(dropped, -torch.inf)
    return scores


def _log_probs(scores: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return scores.gather(-1, tokens[:, None])[:, 0] - scores.logsumexp(-1)
