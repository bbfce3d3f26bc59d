"""Preference losses written out once more, over one sequence at a time: what the trainer's are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from mmjobs.data.encode import Encoded

Number = torch.Tensor


def log_probs(network: Any, pixels: Any, prompt: list[int], answer: list[int], seen: dict[str, Any]) -> Number:
    """Of each token of one answer behind its prompt, in a sequence of its own, with all logits written out."""
    ids = torch.tensor([prompt + answer])
    out = network(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels.join([seen], ids), use_cache=False)
    spread = out.logits[0].double().log_softmax(-1)
    values = torch.stack([spread[len(prompt) - 1 + n, token] for n, token in enumerate(answer)])
    values.certain = torch.stack(  # type: ignore[attr-defined]  # beside it, for WPO
        [spread[len(prompt) - 1 + n].exp().square().sum().log() for n in range(len(answer))]
    )
    return values


class Judged:
    """One example: the log-probabilities of its answers to the policy and to the reference."""

    def __init__(self, network: Any, pixels: Any, one: Encoded, reference: Sequence[Number]) -> None:
        prompts = [one.prompt.ids] * len(one.answers)
        answers, seens = [answer.ids for answer in one.answers], [one.seen] * len(one.answers)
        if one.stranger is not None:
            prompts, answers, seens = [*prompts, one.prompt.ids], [*answers, one.stranger.ids], [*seens, one.seen]
        if one.spoiled is not None:
            prompts, answers, seens = [*prompts, one.prompt.ids], [*answers, answers[0]], [*seens, one.spoiled]
        self.each = [log_probs(network, pixels, *three) for three in zip(prompts, answers, seens, strict=True)]
        self.reference = list(reference) or [torch.zeros_like(values) for values in self.each]
        self.count, self.has_spoiled = len(one.answers), one.spoiled is not None
        self.scores = one.scores

    def ratio(self, number: int) -> Number:
        return (self.each[number] - self.reference[number]).sum()


def log_sigmoid(x: Number) -> Number:
    return torch.nn.functional.logsigmoid(x)


def each(term: str, options: dict[str, Any], beta: float, one: Judged, batch: Sequence[Judged], shift: float) -> Number:
    """The loss of one example by one term."""
    w, l = one.ratio(0), one.ratio(1) if one.count > 1 else torch.tensor(0.0)  # noqa: E741  the papers' letters
    smoothing = options.get("label_smoothing", 0.0)
    d = beta * (w - l)
    mean = [values.sum() / len(values) for values in one.each]
    if term == "sigmoid":
        return -(1 - smoothing) * log_sigmoid(d) - smoothing * log_sigmoid(-d)
    if term == "robust":
        return (-(1 - smoothing) * log_sigmoid(d) + smoothing * log_sigmoid(-d)) / (1 - 2 * smoothing)
    if term == "image_conditional":
        return -log_sigmoid(beta * (w - one.ratio(-1))) if one.has_spoiled else w * 0
    if term == "anchor":
        return -log_sigmoid(beta * w - options.get("delta", 0.0))
    if term == "bco":
        return -log_sigmoid(beta * w - shift) - log_sigmoid(-(beta * l - shift))
    if term == "margin":
        p = 1 / (1 + math.exp(-options.get("gamma", 1.0) * (one.scores[0] - one.scores[1])))
        return -p * log_sigmoid(d) - (1 - p) * log_sigmoid(-d)
    if term == "hinge":
        return (1 - d).clamp(min=0)
    if term == "ipo":
        return (w / len(one.each[0]) - l / len(one.each[1]) - 1 / (2 * beta)) ** 2
    if term == "nca":
        return -log_sigmoid(beta * w) - 0.5 * log_sigmoid(-beta * w) - 0.5 * log_sigmoid(-beta * l)
    if term == "exo":
        e = options.get("label_smoothing", 1e-3)
        return torch.sigmoid(d) * (log_sigmoid(d) - math.log(1 - e)) + torch.sigmoid(-d) * (
            log_sigmoid(-d) - math.log(e)
        )
    if term == "sppo":
        return (w - 1 / (2 * beta)) ** 2 + (l + 1 / (2 * beta)) ** 2
    if term == "apo_zero":
        return 1 - torch.sigmoid(beta * w) + torch.sigmoid(beta * l)
    if term == "apo_down":
        return torch.sigmoid(beta * w) + 1 - torch.sigmoid(d)
    if term == "discopop":
        m = torch.sigmoid(d / options.get("tau", 0.05))
        return (1 - m) * -log_sigmoid(d) + m * torch.exp(-d)
    if term == "simpo":
        return -log_sigmoid(beta * (mean[0] - mean[1]) - options.get("gamma", 0.5))
    if term == "orpo":
        odds = [value - torch.log(1 - torch.exp(value)) for value in mean[:2]]
        return -log_sigmoid(odds[0] - odds[1])
    if term == "plackett_luce":
        values = torch.stack([beta * one.ratio(k) for k in range(one.count)])
        return -sum((torch.log(torch.exp(values[k]) / torch.exp(values[k:]).sum()) for k in range(one.count)), w * 0)
    if term == "kto":
        number = 2 if one.count > 1 else 1
        z = torch.stack([other.ratio(number) for other in batch]).mean().clamp(min=0).detach()
        return 0.5 * (1 - torch.sigmoid(beta * (w - z))) + 0.5 * (1 - torch.sigmoid(beta * (z - l)))
    raise KeyError(term)


def aot(options: dict[str, Any], beta: float, batch: Sequence[Judged]) -> Number:
    """The mean over a batch: values of equal rank meet."""
    smoothing = options.get("label_smoothing", 0.0)
    if options.get("pairs", "paired") == "paired":
        policy = torch.stack([one.each[0].sum() - one.each[1].sum() for one in batch]).sort().values
        known = torch.stack([one.reference[0].sum() - one.reference[1].sum() for one in batch]).sort().values
        x = beta * (policy - known)
    else:
        chosen = torch.stack([one.ratio(0) for one in batch]).sort().values
        x = beta * (chosen - torch.stack([one.ratio(1) for one in batch]).sort().values)
    return (-(1 - smoothing) * log_sigmoid(x) - smoothing * log_sigmoid(-x)).mean()


def total(terms: dict[str, dict[str, Any]], beta: float, batch: Sequence[Judged], shift: float = 0.0) -> Number:
    """The weighted sum of all terms over a batch."""
    parts = []
    for term, options in terms.items():
        if term == "sft":
            tokens = torch.cat([one.each[0] for one in batch])
            loss = -tokens.mean()
        elif term == "aot":
            loss = aot(options, beta, batch)
        else:
            loss = torch.stack([each(term, options, beta, one, batch, shift) for one in batch]).mean()
        parts.append(options.get("weight", 1.0) * loss)
    return torch.stack(parts).sum()


def with_options(term: str, beta: float, one: Judged, options: dict[str, Any]) -> Number:
    """sigmoid, hinge or ipo of one pair under one option of the objective."""
    lengths = [len(values) for values in one.each[:2]]
    ratios = []
    for own, known in zip(one.each[:2], one.reference, strict=False):
        each_token = own - known
        if (alpha := options.get("ld_alpha")) is not None:
            shared = min(lengths)
            ratios.append(each_token[:shared].sum() + alpha * each_token[shared:].sum())
        else:
            ratios.append(each_token.sum())
    kind, alpha = options.get("divergence"), options.get("divergence_alpha", 0.5)
    slopes: dict[Any, Any] = {
        "forward_kl": lambda r: 1 - 1 / r, "js": lambda r: torch.log(2 * r / (1 + r)),
        "alpha": lambda r: (r ** (alpha - 1) - 1) / (alpha - 1),
    }  # fmt: skip
    scores = [slopes[kind](torch.exp(ratio)) if kind else ratio for ratio in ratios]
    d = scores[0] - scores[1]
    if term == "ipo":
        loss = (scores[0] / lengths[0] - scores[1] / lengths[1] - 1 / (2 * beta)) ** 2
    else:
        loss = -log_sigmoid(beta * d) if term == "sigmoid" else (1 - beta * d).clamp(min=0)
    if options.get("wpo"):
        weight = [(own.detach() - own.certain.detach()).mean() for own in one.each[:2]]  # type: ignore[attr-defined]  # beside it
        loss = torch.exp(weight[0] + weight[1]) * loss
    return loss
