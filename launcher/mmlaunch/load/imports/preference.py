"""The preference losses of other tools as terms of `objective`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmlaunch.load.imports.draft import Draft

TERMS: dict[str, tuple[str, dict[str, Any]]] = {
    "sigmoid": ("sigmoid", {}), "hinge": ("hinge", {}), "ipo": ("ipo", {}), "exo_pair": ("exo", {}),
    "nca_pair": ("nca", {}), "robust": ("robust", {}), "bco_pair": ("bco", {}), "sppo_hard": ("sppo", {}),
    "aot": ("aot", {}), "aot_pair": ("aot", {"pairs": "unpaired"}), "aot_unpaired": ("aot", {"pairs": "unpaired"}),
    "apo_zero": ("apo_zero", {}), "apo_down": ("apo_down", {}), "discopop": ("discopop", {}), "sft": ("sft", {}),
    "kto_pair": ("kto", {}), "simpo": ("simpo", {}), "orpo": ("orpo", {}),
}  # fmt: skip
"""Their name -> the term, and its options."""
SMOOTHED = ("sigmoid", "robust", "exo", "aot")
"""The terms that know a share of wrong labels."""


def put_terms(
    draft: Draft,
    names: Sequence[str],
    weights: Sequence[float],
    options: dict[str, dict[str, Any]],
    smoothing: float = 0,
) -> None:
    """Write the weighted sum of these losses; `options`: more options of single terms."""
    terms: dict[str, Any] = {}
    for name, weight in zip(names, weights, strict=True):
        if name not in TERMS:
            draft.leave("loss_type", name, f"no term computes it; those that are known: {', '.join(TERMS)}")
            continue
        term, own = TERMS[name]
        all_options = {**own, **options.get(term, {})}
        if smoothing and term in SMOOTHED:
            all_options["label_smoothing"] = smoothing
        terms[term] = {"weight": weight, **all_options} if all_options and weight != 1 else all_options or weight
    if not terms:
        draft.guess("objective.method", "dpo", "none of the losses of the configuration is known")
    elif terms.keys() == {"sigmoid"} and terms["sigmoid"] == 1:
        draft.put("objective.method", "dpo")
    else:
        draft.put("objective.terms", terms)
    if "bco" in terms and draft.tool == "TRL":
        draft.comments["objective.terms"] = "bco subtracts its running shift, as in InternVL's MPO; TRL's has none"
