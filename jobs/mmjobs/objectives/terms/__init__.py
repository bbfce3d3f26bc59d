"""The terms of a preference objective by their names: each makes one number of each pair, or of each example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mmjobs.objectives.policy_vs_reference import PolicyVsReference
from mmjobs.objectives.terms import others, pairs, single

TERMS: dict[str, Callable[[PolicyVsReference, Any], torch.Tensor]] = {
    "sigmoid": pairs.sigmoid, "robust": pairs.robust, "margin": pairs.margin, "hinge": pairs.hinge, "ipo": pairs.ipo,
    "exo": pairs.exo, "discopop": pairs.discopop, "aot": pairs.aot, "simpo": pairs.simpo, "orpo": pairs.orpo,
    "anchor": single.anchor, "bco": single.bco, "nca": single.nca, "sppo": single.sppo, "apo_zero": single.apo_zero,
    "apo_down": single.apo_down, "kto": single.kto, "image_conditional": others.image_conditional,
    "plackett_luce": others.plackett_luce,
}  # fmt: skip
"""All but `sft`, which is a mean over tokens."""

BY_EXAMPLE = frozenset({"kto", "plackett_luce"})
"""Those that make one number of each example; the others, of each pair."""
