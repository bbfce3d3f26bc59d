"""Preference optimisation: a weighted sum of terms over what policy and reference make of the same answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmjobs.data.batch import PLAIN, Batch
from mmjobs.objectives.forward import answer_log_probs
from mmjobs.objectives.global_batch import among, told
from mmjobs.objectives.objective import ObjectiveOutput, Told, Units
from mmjobs.objectives.policy_vs_reference import CompletionSums, PolicyVsReference, picked
from mmjobs.objectives.terms import BY_EXAMPLE, TERMS
from mmjobs.objectives.terms.pairs import labels
from mmlaunch.recipe.metrics import BINS, metrics
from mmlaunch.recipe.objective import Preference as Settings
from mmlaunch.recipe.terms import Margin

Reference = Callable[[nn.Module, Batch], torch.Tensor]
"""The reference's log-probability of each learnt token of a batch: [U]."""


class Preference:
    """The unit of most terms is the example; that of `sft` is the chosen answer's token."""

    def __init__(self, settings: Settings, reference: Reference | None, spread: float = 1.0) -> None:
        self.settings, self._reference, self._spread = settings, reference, spread
        self._terms = settings.weighted
        self.over: tuple[str, ...] = ("examples", "tokens") if "sft" in self._terms else ("examples",)
        self.metrics = metrics(settings)
        self._rewards, self._count = 0.0, 0.0
        self._ahead: list[Told] = []

    @property
    def shift(self) -> float:
        """The mean reward of all answers of all finished steps; 0 before the first."""
        return self._rewards / self._count if self._count else 0.0

    def state(self) -> dict[str, Any]:
        return {"rewards": self._rewards, "count": self._count}

    def restore(self, state: dict[str, Any]) -> None:
        self._rewards, self._count = state.get("rewards", 0.0), state.get("count", 0.0)

    def learn(self, sums: dict[str, tuple[float, float]]) -> None:
        for name in ("rewards/chosen", "rewards/rejected"):
            total, count = sums[name]
            self._rewards, self._count = self._rewards + total, self._count + count

    def units(self, batch: Batch) -> Units:
        units = {"examples": float(len(batch))}
        if "sft" in self._terms:
            units["tokens"] = float(_of_chosen(batch).sum())
        return units

    def __call__(self, network: nn.Module, batch: Batch) -> ObjectiveOutput:
        found = answer_log_probs(network, batch, *(["collision"] if self.settings.wpo else []))
        policy = found.values  # [U]
        reference = self._known(network, batch, policy)
        sides = CompletionSums(batch, policy, reference, self.settings)
        pairs = self._compared(batch, sides)
        if self._ahead:
            known = {name: values.to(policy) for name, values in self._ahead.pop(0).items()}
            pairs = replace(pairs, ahead=known)
        each, paired = policy.new_zeros(len(batch)), pairs.paired.nonzero()[:, 0]  # [E], [N]
        measured: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        factor = _wpo(policy, found.collision, sides) if self.settings.wpo else None
        for name, term in self._terms.items():
            if name == "sft":
                continue
            values = TERMS[name](pairs, term)  # [E], or [N] of the pairs among them
            if name not in BY_EXAMPLE:
                values = values if factor is None else factor * values
                values = values.new_zeros(len(batch)).index_add(0, paired, values)
            each = each + term.weight * values
            measured[f"loss/{name}"] = _sum_of(values)
        losses = {"examples": each.sum()}
        if (sft := self._terms.get("sft")) is not None:
            chosen = _of_chosen(batch)
            losses["tokens"] = -sft.weight * policy[chosen].sum()
            measured["loss/sft"] = _sum_of(-policy[chosen])
            each = each.index_add(0, batch.answers.example[sides.owner[chosen]], -sft.weight * policy[chosen])
        return ObjectiveOutput(losses, each.detach(), measured | self._metrics(pairs, policy - reference, sides))

    @property
    def looks_ahead(self) -> bool:
        """Whether the loss of an example depends on the others of the global batch."""
        return not {"aot", "kto"}.isdisjoint(self._terms)

    def ahead(self, network: nn.Module, batch: Batch) -> Told:
        """What the others want to know of a batch before the first gradient is made."""
        policy = answer_log_probs(network, batch).values
        return told(
            self._compared(batch, CompletionSums(batch, policy, self._known(network, batch, policy), self.settings))
        )

    def know(self, everyone: Sequence[Sequence[Told]], rank: int) -> None:
        """Take in what all batches of a step have said; they are measured next, in this order."""
        self._ahead = among(everyone, rank, self._terms.get("aot"))

    def _known(self, network: nn.Module, batch: Batch, policy: torch.Tensor) -> torch.Tensor:
        if batch.reference is not None:
            return batch.reference.to(policy.dtype)
        return torch.zeros_like(policy) if self._reference is None else self._reference(network, batch)

    def _compared(self, batch: Batch, sides: CompletionSums) -> PolicyVsReference:
        arranged = sides.arranged
        mismatched = arranged.mismatched[arranged.mismatched >= 0]
        return PolicyVsReference(
            beta=self.settings.beta,
            chosen=sides.side(arranged.chosen),
            rejected=sides.side(arranged.rejected),
            corrupted=sides.side(arranged.corrupted),
            ratios=picked(sides.ratio, arranged.table),
            there=arranged.there,
            unpaired_label=arranged.unpaired_label,
            mismatched=sides.ratio[mismatched],
            paired=arranged.paired,
            shift=self.shift,
            spread=self._spread,
        )

    def _metrics(
        self, pairs: PolicyVsReference, ratio: torch.Tensor, sides: CompletionSums
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """What is the same for all mixtures, and what some terms add."""
        chosen, rejected, ratio = pairs.beta * pairs.chosen.ratio, pairs.beta * pairs.rejected.ratio, ratio.detach()
        good, bad = (
            pairs.beta * pairs.ratios[pairs.unpaired_label == sign, 0] for sign in (1, -1)
        )  # answers without a pair
        found = {
            "accuracy": _sum_of((chosen > rejected).to(ratio)),
            "rewards/chosen": _sum_of(torch.cat([chosen, good])),
            "rewards/rejected": _sum_of(torch.cat([rejected, bad])),
            "rewards/margin": _sum_of(chosen - rejected),
            "logps/chosen": _sum_of(pairs.chosen.logp),
            "logps/rejected": _sum_of(pairs.rejected.logp),
        }
        if self.settings.refers:  # per token; an estimate that is never below 0
            found["kl"] = _sum_of((torch.expm1(-ratio.clamp(-80, 80)) + ratio)[sides.plain])
        if "image_conditional" in self._terms:
            seen = pairs.corrupted.tokens > 0
            found["conditional_accuracy"] = _sum_of((pairs.chosen.ratio > pairs.corrupted.ratio)[seen].to(ratio))
        if "bco" in self._terms:
            found["shift"] = ratio.new_tensor(self.shift), ratio.new_tensor(1.0)
        if isinstance(term := self._terms.get("margin"), Margin):
            bins = (10 * labels(pairs, term)).floor().sub(4).clamp(0, len(BINS) - 1)
            found |= {f"labels/{name}": _sum_of((bins == number).to(ratio)) for number, name in enumerate(BINS)}
        return found


def _of_chosen(batch: Batch) -> torch.Tensor:
    """[U], the tokens of the best answer of each example."""
    answers, owner = batch.answers, batch.owners[batch.loss_mask]
    return ((answers.kind == PLAIN) & (answers.place == 0))[owner]


def _wpo(policy: torch.Tensor, collision: torch.Tensor, sides: CompletionSums) -> torch.Tensor:
    """[N], how likely the policy itself would have said both answers (WPO, eq. 2)."""
    each = policy.new_zeros(len(sides.tokens)).index_add(0, sides.owner, policy.detach() - collision)
    mean = each / sides.tokens.clamp_min(1)
    return torch.exp(picked(mean, sides.arranged.chosen) + picked(mean, sides.arranged.rejected))


def _sum_of(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return values.detach().sum(), values.new_tensor(values.numel())
