"""Preference losses and metrics written out once more, over one sequence at a time: what the trainer's are compared
with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from mmjobs.data.encode import Encoded
from mmlaunch.recipe.preference import LABEL_BINS

Number = torch.Tensor
Options = dict[str, Any]
SLOPES: dict[str, Any] = {
    "reverse_kl": lambda r, alpha: torch.log(r), "forward_kl": lambda r, alpha: 1 - 1 / r,
    "js": lambda r, alpha: torch.log(2 * r / (1 + r)), "alpha": lambda r, alpha: (r ** (alpha - 1) - 1) / (alpha - 1),
}  # fmt: skip
"""f' of the divergences, of a ratio itself."""


def log_probs(network: Any, pixels: Any, prompt: list[int], answer: list[int], seen: dict[str, Any]) -> Number:
    """Of each token of one answer behind its prompt, in a sequence of its own, with all logits written out."""
    return _log_probs(network, pixels, prompt, answer, seen)[0]


def _log_probs(
    network: Any, pixels: Any, prompt: list[int], answer: list[int], seen: dict[str, Any]
) -> tuple[Number, Number]:
    """And the logarithm of the chance that two draws are the same token, for WPO."""
    ids = torch.tensor([prompt + answer])
    out = network(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels.join([seen], ids), use_cache=False)
    spread = out.logits[0].double().log_softmax(-1)[len(prompt) - 1 : -1]
    values = torch.stack([spread[n, token] for n, token in enumerate(answer)])
    return values, spread.exp().square().sum(-1).log().detach()


class Judged:
    """One example under the options of an objective: what policy and reference make of its answers."""

    def __init__(
        self, network: Any, pixels: Any, one: Encoded, reference: Sequence[Number], options: Options | None = None
    ) -> None:
        prompts = [one.prompt.ids] * len(one.answers)
        answers, seens = [answer.ids for answer in one.answers], [one.image_inputs] * len(one.answers)
        if one.mismatched is not None:
            prompts, answers, seens = (
                [*prompts, one.prompt.ids],
                [*answers, one.mismatched.ids],
                [*seens, one.image_inputs],
            )
        if one.corrupted is not None:
            prompts, answers, seens = [*prompts, one.prompt.ids], [*answers, answers[0]], [*seens, one.corrupted]
        found = [_log_probs(network, pixels, *three) for three in zip(prompts, answers, seens, strict=True)]
        self.each, self.certain = [values for values, _ in found], [certain for _, certain in found]
        self.reference = list(reference) or [torch.zeros_like(values) for values in self.each]
        self.count, self.has_spoiled = len(one.answers), one.corrupted is not None
        self.scores, self.unpaired_label = one.scores, one.unpaired_label
        self.options = options or {}

    def ratio(self, number: int) -> Number:
        return self._whole(self.each[number] - self.reference[number])

    def logp(self, number: int) -> Number:
        return self._whole(self.each[number])

    def known(self, number: int) -> Number:
        return self._whole(self.reference[number])

    def mean(self, number: int) -> Number:
        return self.logp(number) / len(self.each[number])

    def score(self, number: int) -> Number:
        kind, alpha = self.options.get("divergence", "reverse_kl"), self.options.get("divergence_alpha", 0.5)
        found: Number = SLOPES[kind](torch.exp(self.ratio(number)), alpha)
        return found

    @property
    def likely(self) -> Number:
        """The weight of its pair (WPO)."""
        if not self.options.get("wpo"):
            return torch.tensor(1.0)
        each = [(own.detach() - certain).mean() for own, certain in zip(self.each[:2], self.certain[:2], strict=True)]
        return torch.exp(each[0] + each[1])

    def _whole(self, values: Number) -> Number:
        """The sum; tokens beyond the shortest answer's length count less (LD-DPO)."""
        shared = min(len(own) for own in self.each[: self.count])
        beyond: float = self.options.get("ld_alpha", 1.0)
        return values[:shared].sum() + beyond * values[shared:].sum()


def log_sigmoid(x: Number) -> Number:
    return torch.nn.functional.logsigmoid(x)


def label(options: Options, one: Judged, spread: float) -> float:
    """How sure MMPO is of a pair."""
    gap = (one.scores[0] or 0.0) - (one.scores[1] or 0.0)
    gap = gap / spread if options.get("scores") == "divided by their spread" else gap
    return 1 / (1 + math.exp(-options.get("gamma", 1.0) * gap))


def of_pair(term: str, options: Options, beta: float, one: Judged, shift: float, spread: float) -> Number:
    """The loss of one example by a term that asks for nothing but its own answers."""
    won, lost = one.ratio(0), one.ratio(1)
    smoothing: float = options.get("label_smoothing", 0.0)
    d = beta * (one.score(0) - one.score(1))
    if term == "sigmoid":
        return -(1 - smoothing) * log_sigmoid(d) - smoothing * log_sigmoid(-d)
    if term == "robust":
        return (-(1 - smoothing) * log_sigmoid(d) + smoothing * log_sigmoid(-d)) / (1 - 2 * smoothing)
    if term == "image_conditional":
        return -log_sigmoid(beta * (one.score(0) - one.score(-1))) if one.has_spoiled else won * 0
    if term == "anchor":
        return -log_sigmoid(beta * won - options.get("delta", 0.0))
    if term == "bco":
        return -log_sigmoid(beta * won - shift) - log_sigmoid(-(beta * lost - shift))
    if term == "margin":
        p = label(options, one, spread)
        return -p * log_sigmoid(d) - (1 - p) * log_sigmoid(-d)
    if term == "hinge":
        return (1 - d).clamp(min=0)
    if term == "ipo":
        return (one.score(0) / len(one.each[0]) - one.score(1) / len(one.each[1]) - 1 / (2 * beta)) ** 2
    if term == "nca":
        return -log_sigmoid(beta * won) - 0.5 * log_sigmoid(-beta * won) - 0.5 * log_sigmoid(-beta * lost)
    if term == "exo":
        e = options.get("label_smoothing", 1e-3)
        return torch.sigmoid(d) * (log_sigmoid(d) - math.log(1 - e)) + torch.sigmoid(-d) * (
            log_sigmoid(-d) - math.log(e)
        )
    if term == "sppo":
        return (won - 1 / (2 * beta)) ** 2 + (lost + 1 / (2 * beta)) ** 2
    if term == "apo_zero":
        return 1 - torch.sigmoid(beta * won) + torch.sigmoid(beta * lost)
    if term == "apo_down":
        return torch.sigmoid(beta * won) + 1 - torch.sigmoid(d)
    if term == "discopop":
        m = torch.sigmoid(d / options.get("tau", 0.05))
        return (1 - m) * -log_sigmoid(d) + m * torch.exp(-d)
    if term == "simpo":
        return -log_sigmoid(beta * (one.mean(0) - one.mean(1)) - options.get("gamma", 0.5))
    if term == "orpo":
        odds = [value - torch.log(1 - torch.exp(value)) for value in (one.mean(0), one.mean(1))]
        return -log_sigmoid(odds[0] - odds[1])
    raise KeyError(term)


def plackett_luce(beta: float, one: Judged) -> Number:
    """Each against itself and those behind it, without its equals."""
    values = torch.stack([beta * one.ratio(k) for k in range(one.count)])
    behind = [
        [k, *(j for j in range(k + 1, one.count) if one.scores[j] is None or one.scores[j] != one.scores[k])]
        for k in range(one.count)
    ]
    chances = [torch.exp(values[k]) / torch.exp(values[behind[k]]).sum() for k in range(one.count)]
    return -torch.log(torch.stack(chances)).sum()


def point(batch: Sequence[Judged]) -> float:
    """KTO's reference point: the mean ratio of the answers to something else, never below 0."""
    return max(0.0, float(torch.stack([one.ratio(one.count) for one in batch]).detach().mean()))


def kto(options: Options, beta: float, one: Judged, z: float) -> Number:
    good: Number = options.get("desirable", 1.0) * (1 - torch.sigmoid(beta * (one.ratio(0) - z)))
    if one.count == 1 and one.unpaired_label > 0:
        return good
    bad: Number = options.get("undesirable", 1.0) * (1 - torch.sigmoid(beta * (z - one.ratio(one.count - 1))))
    return bad if one.count == 1 else (good + bad) / 2


def aot(options: Options, beta: float, batch: Sequence[Judged]) -> list[Number]:
    """Each value meets the one of its rank; where two examples meet, each has half of it."""
    smoothing: float = options.get("label_smoothing", 0.0)

    def loss(better: list[Number], worse: list[Number]) -> Number:
        x = beta * (torch.stack(better).sort().values - torch.stack(worse).sort().values)
        return -(1 - smoothing) * log_sigmoid(x) - smoothing * log_sigmoid(-x)  # by rank

    def rank(values: list[Number]) -> Number:
        return torch.stack(values).argsort().argsort()

    if options.get("pairs", "paired") == "paired":
        policy = [one.logp(0) - one.logp(1) for one in batch]
        return list(loss(policy, [one.known(0) - one.known(1) for one in batch])[rank(policy)])
    chosen, rejected = ([one.ratio(number) for one in batch] for number in (0, 1))
    met = loss(chosen, rejected)
    return list((met[rank(chosen)] + met[rank(rejected)]) / 2)


Terms = dict[str, Options]


def losses(terms: Terms, beta: float, batch: Sequence[Judged], shift: float, spread: float) -> dict[str, Number]:
    """[E] of each term without its weight; of `sft` the sum over the tokens of the chosen answer."""
    found = {}
    for term, options in terms.items():
        if term == "sft":
            found[term] = torch.stack([-one.each[0].sum() for one in batch])
        elif term == "aot":
            found[term] = torch.stack(aot(options, beta, batch))
        elif term == "kto":
            found[term] = torch.stack([kto(options, beta, one, point(batch)) for one in batch])
        elif term == "plackett_luce":
            found[term] = torch.stack([plackett_luce(beta, one) for one in batch])
        else:
            found[term] = torch.stack([one.likely * of_pair(term, options, beta, one, shift, spread) for one in batch])
    return found


def weighted(terms: Terms, found: dict[str, Number]) -> Number:
    """[E], the loss of each example as it stands in the record."""
    return torch.stack([terms[term].get("weight", 1.0) * values for term, values in found.items()]).sum(0)


def total(terms: Terms, found: dict[str, Number], batch: Sequence[Judged]) -> Number:
    """What is minimised: means over examples, and over tokens for `sft`."""
    counts = {term: sum(len(one.each[0]) for one in batch) if term == "sft" else len(batch) for term in found}
    return torch.stack(
        [terms[term].get("weight", 1.0) * values.sum() / counts[term] for term, values in found.items()]
    ).sum()


def metrics(
    terms: Terms, beta: float, batch: Sequence[Judged], found: dict[str, Number], spread: float
) -> dict[str, tuple[float, float]]:
    """(sum, count) of what is measured beside the loss."""
    pairs = [one for one in batch if one.count > 1]
    good = [beta * one.ratio(0) for one in batch if one.count > 1 or one.unpaired_label > 0]
    bad = [
        beta * one.ratio(one.count - 1 if one.unpaired_label else 1)
        for one in batch
        if one.count > 1 or one.unpaired_label < 0
    ]
    tokens = torch.cat(
        [known - own for one in batch for own, known in zip(one.each[: one.count], one.reference, strict=False)]
    )
    seen = [one for one in pairs if one.has_spoiled]
    told = {
        "accuracy": [one.ratio(0) > one.ratio(1) for one in pairs],
        "rewards/chosen": good, "rewards/rejected": bad,
        "rewards/margin": [beta * (one.ratio(0) - one.ratio(1)) for one in pairs],
        "logps/chosen": [one.logp(0) for one in pairs], "logps/rejected": [one.logp(1) for one in pairs],
        "kl": list(torch.exp(tokens) - 1 - tokens),
        "conditional_accuracy": [one.ratio(0) > one.ratio(-1) for one in seen],
    }  # fmt: skip
    if "margin" in terms:
        sure = [label(terms["margin"], one, spread) for one in pairs]
        bins = [0 if p < 0.5 else 1 + min(4, int(10 * p) - 5) for p in sure]
        told |= {f"labels/{name}": [torch.tensor(n == own) for own in bins] for n, name in enumerate(LABEL_BINS)}
    sums = {name: (sum(float(one.detach()) for one in values), float(len(values))) for name, values in told.items()}
    for term, values in found.items():
        count = sum(len(one.each[0]) for one in batch) if term == "sft" else len(values)
        sums[f"loss/{term}"] = float(values.detach().sum()), float(count)
    return sums
