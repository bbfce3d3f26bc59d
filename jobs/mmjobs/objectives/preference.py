"""Preference optimisation: a weighted sum of terms over the log-probabilities of policy and reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmjobs.data.batch import PLAIN, Batch
from mmjobs.objectives.forward import answer_log_probs
from mmjobs.objectives.global_batch import for_micro_batches, statistics_of
from mmjobs.objectives.objective import ObjectiveOutput, Reference, Statistics, Units
from mmjobs.objectives.policy_vs_reference import CompletionSums, PolicyVsReference, pick
from mmjobs.objectives.terms import TERMS
from mmjobs.objectives.terms.pairs import soft_labels
from mmjobs.objectives.terms.term import own_term
from mmlaunch.recipe.preference import LABEL_BINS
from mmlaunch.recipe.preference import Preference as Settings
from mmlaunch.recipe.terms import Margin

Metrics = dict[str, tuple[torch.Tensor, torch.Tensor]]
_BOUND = 80
"""The largest exponent: beyond it fp32 overflows."""


class Preference:
    """The unit of most terms is the example; that of `sft` is the chosen answer's token."""

    def __init__(self, settings: Settings, reference: Reference | None, std: float = 1.0) -> None:
        """`reference`: a model that runs at every step; None where batches hold its log-probabilities, or none is used.

        `std`: the standard deviation of the score gaps in the training data.
        """
        self.settings, self._reference, self._std = settings, reference, std
        self._terms = settings.weighted
        self._functions = TERMS | {plugin.name: own_term(plugin) for plugin in settings.terms.plugins}
        self.over: tuple[str, ...] = ("examples", "tokens") if "sft" in self._terms else ("examples",)
        self.metrics = settings.metrics
        self._rewards, self._count = 0.0, 0.0
        self._global_batch: list[Statistics] = []

    @property
    def shift(self) -> float:
        """The mean reward of all answers of all finished steps; 0 before the first."""
        return self._rewards / self._count if self._count else 0.0

    def state(self) -> dict[str, Any]:
        return {"rewards": self._rewards, "count": self._count}

    def restore(self, state: dict[str, Any]) -> None:
        self._rewards, self._count = state.get("rewards", 0.0), state.get("count", 0.0)

    def update(self, sums: dict[str, tuple[float, float]]) -> None:
        for name in ("rewards/chosen", "rewards/rejected"):
            total, count = sums[name]
            self._rewards, self._count = self._rewards + total, self._count + count

    def units(self, batch: Batch) -> Units:
        units = {"examples": float(len(batch))}
        if "sft" in self._terms:
            units["tokens"] = float(_in_chosen(batch).sum())
        return units

    def __call__(self, network: nn.Module, batch: Batch) -> ObjectiveOutput:
        computed = answer_log_probs(network, batch, *(["collision"] if self.settings.wpo else []))
        policy = computed.values  # [U]
        reference = self._reference_log_probs(network, batch, policy)
        sums = CompletionSums(batch, policy, reference, self.settings)
        pairs = self._pairs(batch, sums)
        if self._global_batch:
            statistics = {name: values.to(policy) for name, values in self._global_batch.pop(0).items()}
            pairs = replace(pairs, global_batch=statistics)
        losses = policy.new_zeros(len(batch))  # [E]
        metrics: Metrics = {}
        weight = _wpo(policy, computed.collision, sums) if self.settings.wpo else None
        for name, term in self._terms.items():
            if name == "sft":
                continue
            values = self._functions[name].loss(pairs, term)  # [N], or [E]
            if not self._functions[name].by_example:
                values = values if weight is None else weight * values
                values = values.new_zeros(len(batch)).index_add(0, sums.index.pairs, values)
            losses = losses + term.weight * values
            metrics[f"loss/{name}"] = _sum(values)
        totals = {"examples": losses.sum()}
        if (sft := self._terms.get("sft")) is not None:
            chosen = sums.index.in_chosen
            totals["tokens"] = -sft.weight * policy[chosen].sum()
            metrics["loss/sft"] = _sum(-policy[chosen])
            owner = batch.answers.example[sums.index.owner[chosen]]
            losses = losses.index_add(0, owner, -sft.weight * policy[chosen])
        return ObjectiveOutput(totals, losses.detach(), metrics | self._metrics(pairs, policy - reference, sums))

    @property
    def needs_global_batch(self) -> bool:
        """Whether the loss of an example depends on the others of the global batch."""
        return any(name != "sft" and self._functions[name].needs_global_batch for name in self._terms)

    def statistics(self, network: nn.Module, batch: Batch) -> Statistics:
        """What the other micro-batches need to know of this one."""
        policy = answer_log_probs(network, batch).values
        reference = self._reference_log_probs(network, batch, policy)
        return statistics_of(self._pairs(batch, CompletionSums(batch, policy, reference, self.settings)))

    def set_global_batch(self, statistics: Sequence[Sequence[Statistics]], rank: int) -> None:
        """Take the statistics of all micro-batches of a step; this rank's are computed next, in this order."""
        self._global_batch = for_micro_batches(statistics, rank, self._terms.get("aot"))

    def _reference_log_probs(self, network: nn.Module, batch: Batch, policy: torch.Tensor) -> torch.Tensor:
        """[U]; zeros for an objective without a reference."""
        if batch.reference is not None:
            return batch.reference.to(policy.dtype)
        return torch.zeros_like(policy) if self._reference is None else self._reference(network, batch)

    def _pairs(self, batch: Batch, sums: CompletionSums) -> PolicyVsReference:
        index = sums.index
        return PolicyVsReference(
            beta=self.settings.beta,
            chosen=sums.completion(index.chosen),
            rejected=sums.completion(index.rejected),
            corrupted=sums.completion(index.corrupted),
            log_ratios=pick(sums.log_ratio, index.table),
            exists=index.exists,
            unpaired_label=index.unpaired_label,
            mismatched=sums.log_ratio[index.mismatched],
            paired=index.paired,
            data_scores=pick(batch.answers.score, index.table),
            shift=self.shift,
            std=self._std,
        )

    def _metrics(self, pairs: PolicyVsReference, log_ratio: torch.Tensor, sums: CompletionSums) -> Metrics:
        """The metrics of all mixtures, and those that some terms add. `log_ratio`: [U]."""
        chosen, rejected = pairs.beta * pairs.chosen.log_ratio, pairs.beta * pairs.rejected.log_ratio
        # Answers without a pair count for what their label says.
        labelled = sums.index.desirable, sums.index.undesirable
        good, bad = (pairs.beta * pairs.log_ratios[examples, 0] for examples in labelled)
        log_ratio = log_ratio.detach()
        metrics = {
            "accuracy": _sum((chosen > rejected).to(log_ratio)),
            "rewards/chosen": _sum(torch.cat([chosen, good])),
            "rewards/rejected": _sum(torch.cat([rejected, bad])),
            "rewards/margin": _sum(chosen - rejected),
            "logps/chosen": _sum(pairs.chosen.logp),
            "logps/rejected": _sum(pairs.rejected.logp),
        }
        if self.settings.uses_reference:  # per token; an estimate that is never below 0
            metrics["kl"] = _sum((torch.expm1(-log_ratio.clamp(-_BOUND, _BOUND)) + log_ratio)[sums.index.plain])
        if "image_conditional" in self._terms:
            better = pairs.chosen.log_ratio > pairs.corrupted.log_ratio
            metrics["conditional_accuracy"] = _sum(better[sums.index.corrupted_pairs].to(log_ratio))
        if "bco" in self._terms:
            metrics["shift"] = log_ratio.new_full((), self.shift), log_ratio.new_full((), 1.0)
        if isinstance(term := self._terms.get("margin"), Margin):
            bins = (10 * soft_labels(pairs, term)).floor().sub(4).clamp(0, len(LABEL_BINS) - 1)
            for number, name in enumerate(LABEL_BINS):
                metrics[f"labels/{name}"] = _sum((bins == number).to(log_ratio))
        return metrics


def _in_chosen(batch: Batch) -> torch.Tensor:
    """[U], whether a token belongs to the best answer of its example."""
    answers, owner = batch.answers, batch.in_loss(batch.owners)
    return ((answers.kind == PLAIN) & (answers.place == 0))[owner]


def _wpo(policy: torch.Tensor, collision: torch.Tensor, sums: CompletionSums) -> torch.Tensor:
    """[N], how likely the policy itself would have given both answers (WPO, eq. 2)."""
    each = policy.new_zeros(len(sums.tokens)).index_add(0, sums.index.owner, policy.detach() - collision)
    mean = each / sums.tokens.clamp_min(1)
    return torch.exp(pick(mean, sums.index.chosen) + pick(mean, sums.index.rejected))


def _sum(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of these values and their count."""
    return values.detach().sum(), values.new_full((), values.numel())
