"""The global batch for terms that depend on all of its examples: the reference point of KTO, the ranks of AOT."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmjobs.objectives.objective import Statistics
from mmjobs.objectives.policy_vs_reference import PolicyVsReference
from mmlaunch.recipe.terms import Aot, Term


def statistics_of(pairs: PolicyVsReference) -> Statistics:
    """What the other micro-batches need to know of one."""
    statistics = {
        "policy": pairs.chosen.logp - pairs.rejected.logp,
        "reference": pairs.chosen.reference_logp - pairs.rejected.reference_logp,
        "chosen": pairs.chosen.log_ratio, "rejected": pairs.rejected.log_ratio, "mismatched": pairs.mismatched,
    }  # fmt: skip
    return {name: values.detach().cpu() for name, values in statistics.items()}


def for_micro_batches(statistics: Sequence[Sequence[Statistics]], rank: int, aot: Term | None) -> list[Statistics]:
    """For each micro-batch of a rank: the reference point of KTO, and the value of the same rank for each in AOT.

    `statistics` are those of all micro-batches of each rank.
    """
    flat = [one for of_rank in statistics for one in of_rank]
    whole = {name: torch.cat([one[name] for one in flat]) for name in flat[0]}
    mismatched = whole["mismatched"]
    point = mismatched.mean().clamp_min(0) if len(mismatched) else torch.tensor(0.0)
    matches: Statistics = {}
    if isinstance(aot, Aot) and aot.pairs == "paired":
        matches["paired"] = _same_rank(whole["policy"], whole["reference"])
    elif aot is not None:
        matches["rejected"] = _same_rank(whole["chosen"], whole["rejected"])
        matches["chosen"] = _same_rank(whole["rejected"], whole["chosen"])
    lengths = [len(one["policy"]) for one in flat]
    pieces = {name: torch.split(values, lengths) for name, values in matches.items()}
    first = sum(len(of_rank) for of_rank in statistics[:rank])
    own = range(first, first + len(statistics[rank]))
    return [{"point": point, **{name: piece[number] for name, piece in pieces.items()}} for number in own]


def _same_rank(values: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """For each value, the one among the others that stands at the same place when both are sorted."""
    matches = torch.empty_like(others)
    matches[values.argsort(stable=True)] = others.sort().values
    return matches
