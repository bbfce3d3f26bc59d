"""What the other examples of the global batch are to those of a micro-batch, for terms that depend on all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmjobs.objectives.objective import Told
from mmjobs.objectives.policy_vs_reference import PolicyVsReference
from mmlaunch.recipe.terms import Aot, Term


def told(pairs: PolicyVsReference) -> Told:
    """What one micro-batch has to say to the others."""
    found = {
        "policy": pairs.chosen.logp - pairs.rejected.logp,
        "reference": pairs.chosen.known - pairs.rejected.known,
        "chosen": pairs.chosen.ratio, "rejected": pairs.rejected.ratio, "strangers": pairs.mismatched,
    }  # fmt: skip
    return {name: values.detach().cpu() for name, values in found.items()}


def among(everyone: Sequence[Sequence[Told]], rank: int, aot: Term | None) -> list[Told]:
    """For each micro-batch of a rank: the reference point of KTO, and whom each value meets in AOT."""
    flat = [one for each in everyone for one in each]
    whole = {name: torch.cat([one[name] for one in flat]) for name in flat[0]}
    mismatched = whole["strangers"]
    point = mismatched.mean().clamp_min(0) if len(mismatched) else torch.tensor(0.0)
    meets: Told = {}
    if isinstance(aot, Aot) and aot.pairs == "paired":
        meets["paired"] = _met(whole["policy"], whole["reference"])
    elif aot is not None:
        meets["rejected"] = _met(whole["chosen"], whole["rejected"])
        meets["chosen"] = _met(whole["rejected"], whole["chosen"])
    lengths = [len(one["policy"]) for one in flat]
    pieces = {name: torch.split(values, lengths) for name, values in meets.items()}
    first = sum(len(each) for each in everyone[:rank])
    mine = range(first, first + len(everyone[rank]))
    return [{"point": point, **{name: piece[number] for name, piece in pieces.items()}} for number in mine]


def _met(values: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """For each value, the one among the others that has the same rank."""
    found = torch.empty_like(others)
    found[values.argsort(stable=True)] = others.sort().values
    return found
