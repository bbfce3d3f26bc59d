"""Log-probabilities of the tokens in the loss, a few rows at a time: `[tokens, vocabulary]` never exists whole.

Where the vocabulary's matrix is frozen, the gradient of each token is made on the way forward, so nothing is computed
twice; where it is trained, the scores of a few rows are computed again on the way back.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

_ROWS, _ON_DEVICE = 128, 1 << 27
"""Tokens at a time on a CPU: with fewer, a product does little but read and write the whole matrix. On a GPU, whose
kernels want many, as many as have so many scores: 512 MB."""
_LEARNT = "learnt entropy"
_UNUSUAL = ("final_logit_softcapping", "logits_scaling", "logit_scale")


class LogProbs(NamedTuple):
    """The numbers of U tokens; those that were not requested are empty, for they cost a pass over every score."""

    values: torch.Tensor  # [U]
    likeliest: torch.Tensor  # [U], whether no other token is likelier
    collision: torch.Tensor  # [U], the logarithm of the chance that two draws are the same token
    entropy: torch.Tensor  # [U], of the next token; it has a gradient where `also` says "learnt entropy"


class Head(nn.Linear):
    """A language model's last matrix. It is called once for all rows: DeepSpeed needs that where it is divided."""

    def forward(self, input: torch.Tensor, tokens: torch.Tensor | None = None, also: Sequence[str] = ()) -> Any:
        if tokens is None:
            return super().forward(input)
        outputs = _TokenLogProbs.apply(input, self.weight, tokens, also)  # type: ignore[no-untyped-call]  # torch gives it none
        return LogProbs(*outputs)


def use(network: Any) -> None:
    """Let the head of a network compute log-probabilities. A head that scales or caps its scores stays as it is."""
    head = network.get_output_embeddings()
    if type(head) is nn.Linear and head.bias is None and not _unusual(network):
        head.__class__ = Head  # in its place: hooks, names and tied weights stay


def log_probs(
    network: Any, hidden: torch.Tensor, tokens: torch.Tensor, also: Sequence[str] = (), temperature: float = 1.0
) -> LogProbs:
    """Log-probabilities of `tokens` [U] after the hidden states [U, D] that predict them; `also` names more outputs."""
    head = network.get_output_embeddings()
    if isinstance(head, Head):
        outputs: LogProbs = head(hidden if temperature == 1 else hidden / temperature, tokens, also)
        return outputs
    every = scores(network, hidden) / temperature  # [U, V]
    total = every.logsumexp(-1)
    values = every.gather(-1, tokens[:, None])[:, 0] - total
    right, collision, entropy = _more(every.detach(), tokens, total.detach(), also)
    return LogProbs(values, right, collision, _entropy(every, total) if _LEARNT in also else entropy)


def scores(network: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The scores of every token after these hidden states, as the model itself makes them: [U, D] -> [U, V]"""
    return _scaled(_exact(network.get_output_embeddings()(hidden)), _unusual(network))


def _unusual(network: Any) -> dict[str, float]:
    """How this network scales and caps its scores. An image-text model does not do what its language model does."""
    config = network.config.get_text_config()
    return {name: value for name in _settings(network.__class__.forward) if (value := getattr(config, name, None))}


@lru_cache
def _settings(forward: Any) -> tuple[str, ...]:
    """The settings of scores that the forward of a class reads."""
    source = inspect.getsource(inspect.unwrap(forward))
    return tuple(name for name in _UNUSUAL if name in source)


def _scaled(scores: torch.Tensor, unusual: dict[str, float]) -> torch.Tensor:
    scores = scores / unusual.get("logits_scaling", 1.0) * unusual.get("logit_scale", 1.0)
    cap = unusual.get("final_logit_softcapping")
    return cap * torch.tanh(scores / cap) if cap else scores


def _more(
    scores: torch.Tensor, tokens: torch.Tensor, total: torch.Tensor, also: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    nothing = total.new_empty(0)
    right = scores.argmax(-1) == tokens if "likeliest" in also else tokens.new_empty(0, dtype=torch.bool)
    collision = (2 * scores).logsumexp(-1) - 2 * total if "collision" in also else nothing
    return right, collision, _entropy(scores, total) if "entropy" in also or _LEARNT in also else nothing


def _entropy(scores: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Of the distributions with these scores [U, V], whose `logsumexp` is the total: [U]"""
    return total - ((scores - total[:, None]).exp() * scores).sum(-1)


class _TokenLogProbs(torch.autograd.Function):
    """Hidden states [U, D], the matrix [V, D], tokens [U] -> what `LogProbs` holds."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor, also: Sequence[str]
    ) -> tuple[torch.Tensor, ...]:
        learns, trained = ctx.needs_input_grad[:2]
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        ctx.trained, ctx.dtype, ctx.entropy = trained, dtype, _LEARNT in also
        ctx.rows = max(1, _ON_DEVICE // len(weight)) if hidden.is_cuda else _ROWS
        with torch.autocast(device, enabled=False):
            matrix = weight.to(dtype)
            totals = _exact(hidden.new_empty(len(tokens), dtype=dtype))
            values, more = torch.empty_like(totals), []
            ways = hidden.new_empty(hidden.shape if learns and not trained else 0)
            entropy_ways = torch.empty_like(ways if ctx.entropy else ways[:0])
            for own in _chunks(len(tokens), ctx.rows):
                scores = _exact(hidden[own].to(dtype) @ matrix.T)  # [R, V]
                totals[own] = total = scores.logsumexp(-1)
                values[own] = scores.gather(-1, tokens[own, None])[:, 0] - total
                more.append(_more(scores, tokens[own], total, also))
                if learns and not trained:
                    if ctx.entropy:
                        entropy_ways[own] = (_entropy_slope(scores, total, more[-1][-1]).to(dtype) @ matrix).to(
                            ways.dtype
                        )
                    slope = _expected(scores, total, tokens[own]).to(dtype)
                    ways[own] = (slope @ matrix).neg_().to(ways.dtype)
        empty = tokens.new_empty(0, dtype=torch.bool), totals.new_empty(0), totals.new_empty(0)
        right, collision, entropy = (torch.cat(parts) for parts in zip(empty, *more, strict=True))
        ctx.save_for_backward(*((hidden, weight, tokens, totals, entropy) if trained else (ways, entropy_ways)))
        ctx.mark_non_differentiable(*((right, collision) if ctx.entropy else (right, collision, entropy)))
        return values, right, collision, entropy

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *more: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # [U]
        of_entropy = more[-1] if ctx.entropy else None  # [U]
        if not ctx.trained:
            ways, entropy_ways = ctx.saved_tensors
            into = ways * grad[:, None]
            into = into if of_entropy is None else into + entropy_ways * of_entropy[:, None]
            return into.to(ways.dtype), None, None, None
        hidden, weight, tokens, totals, entropy = ctx.saved_tensors
        into_hidden, into_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        matrix = weight.to(ctx.dtype)
        for own in _chunks(len(tokens), ctx.rows):
            chunk = hidden[own].to(ctx.dtype)
            scores = _exact(chunk @ matrix.T)  # [R, V]
            more_slope = None
            if of_entropy is not None:
                more_slope = _entropy_slope(scores, totals[own], entropy[own]) * of_entropy[own, None]
            slope = _expected(scores, totals[own], tokens[own]).mul_(-grad[own, None])
            slope = (slope if more_slope is None else slope + more_slope).to(ctx.dtype)
            into_hidden[own] = (slope @ matrix).to(hidden.dtype)
            if slope.dtype == into_weight.dtype:
                into_weight.addmm_(slope.T, chunk)
            else:
                into_weight += slope.T @ chunk
        return into_hidden, into_weight, None, None


def _expected(scores: torch.Tensor, total: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[R, V], the probability of each token, minus 1 for the one that came; in place, before half precision rounds it.

    For a token that was nearly certain only this small difference is left: rounded first, it would be noise.
    """
    likely = scores.sub_(total[:, None]).exp_()
    likely[torch.arange(len(tokens), device=tokens.device), tokens] -= 1
    return likely


def _entropy_slope(scores: torch.Tensor, total: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """[R, V], the gradient of the entropy in the scores."""
    logs = scores - total[:, None]
    return -logs.exp() * (logs + entropy[:, None])


def _exact(scores: torch.Tensor) -> torch.Tensor:
    """Sums over a vocabulary need full precision."""
    return scores if scores.dtype == torch.float64 else scores.float()


def _chunks(count: int, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, count, rows)]
