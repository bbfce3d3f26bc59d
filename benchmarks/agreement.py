"""Where this trainer and TRL's DPOTrainer define the same thing, they compute the same: six steps of each.

    /tmp/trl/bin/python -m benchmarks.agreement > benchmarks/results/DATE-agreement.md

sft.py tells how TRL gets an environment of its own. Both start from the same tiny LLaVA and train it on the same pairs
in the same order; the losses and the norms of the gradients of six optimiser steps are compared.
"""

from __future__ import annotations

import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.contender import Contender
from benchmarks.preference_trainers import ours, theirs, write

STEPS, AGREE = 6, 1e-4
MODEL: dict[str, Any] = {
    "vision": {"random": {"width": 32, "layers": 2, "heads": 2, "image_size": 32, "patch": 8}},
    "language": {"random": {"width": 48, "layers": 2, "heads": 4, "max_positions": 1024}},
}
SAME: dict[str, tuple[Any, dict[str, Any]]] = {
    "sigmoid": ("dpo", {}),
    "hinge": ("hinge", {"loss_type": ["hinge"]}),
    "ipo": ("ipo", {"loss_type": ["ipo"]}),
    "nca": ("nca", {"loss_type": ["nca_pair"]}),
    "sppo": ("sppo", {"loss_type": ["sppo_hard"]}),
    "apo_zero": ("apo_zero", {"loss_type": ["apo_zero"]}),
    "apo_down": ("apo_down", {"loss_type": ["apo_down"]}),
    "discopop": ("discopop", {"loss_type": ["discopop"]}),
    "robust, smoothing 0.1": (
        {"method": "robust", "terms": {"robust": {"label_smoothing": 0.1}}},
        {"loss_type": ["robust"], "label_smoothing": 0.1},
    ),
    "exo, smoothing 0.1": (
        {"method": "exo", "terms": {"exo": {"label_smoothing": 0.1}}},
        {"loss_type": ["exo_pair"], "label_smoothing": 0.1},
    ),
    "aot": ("aot", {"loss_type": ["aot"]}),
    "aot, unpaired": (
        {"method": "aot", "terms": {"aot": {"pairs": "unpaired"}}}, {"loss_type": ["aot_unpaired"]},
    ),
    "sigmoid + 0.5 sft": (
        {"method": "dpo", "terms": {"sft": 0.5}}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    ),
    "sigmoid, forward KL": ({"method": "dpo", "divergence": "forward_kl"}, {"f_divergence_type": "forward_kl"}),
    "sigmoid, Jensen-Shannon": ({"method": "dpo", "divergence": "js"}, {"f_divergence_type": "js_divergence"}),
    "ipo, alpha 0.5": (
        {"method": "ipo", "divergence": "alpha"}, {"loss_type": ["ipo"], "f_divergence_type": "alpha_divergence"},
    ),
    "sigmoid, LD 0.5": ({"method": "dpo", "ld_alpha": 0.5}, {"ld_alpha": 0.5}),
    "sigmoid, WPO": ({"method": "dpo", "wpo": True}, {"use_weighting": True}),
}  # fmt: skip
"""name -> our objective, TRL's options."""
MAGNIFYING = ("discopop", "sigmoid, forward KL", "sigmoid, Jensen-Shannon", "ipo, alpha 0.5")
SHORT = 20
"""These magnify what TRL's difference of two sums loses, so they are compared on answers of so few tokens as well."""
OTHERWISE = """
discopop divides by its tau of 0.05, and a divergence is an exponential of the log-ratio: they magnify what fp32 loses
in TRL's difference of two sums of about a thousand; how much, depends on the processor. With answers of 20 tokens,
where the sums are a hundred, they agree as the others do; in fp64 formulas agree to 1e-9 (tests/jobs/test_terms.py).

Where TRL 1.16 differs, and why this trainer does not follow it:

| what | TRL | here | why |
|---|---|---|---|
| bco | knows no shift | less the mean of all earlier rewards | MPO, eq. 5; they are equal at the first step only |
| sft | mean over a micro-batch | over the global batch | no result depends on how a batch is cut |
| aot | sorts a micro-batch | sorts the global batch | the same |
| discopop far below 0 | 0 x infinity | one exponent | no NaN around beta D = -90 |
| WPO | weighs every term, sft as well | weighs the terms over pairs | eq. 2 weighs the preference loss |
| log-ratios | the difference of two sums | the sum of differences | fp32 keeps its digits |
| reference for images | a second pass in each step | measured once | it does not change |
"""


def main() -> None:
    print(f"# The same as TRL {version('trl')}, {date.today()}\n")
    print(f"Tiny LLaVA, fp32, 2 pairs a step, learning rate 1e-4; {STEPS} steps. Largest relative differences.\n")
    print("| objective | first loss | last loss | losses | gradient norms | within 1e-4 |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        usual, short = Path(folder) / "usual", Path(folder) / "short"
        write(usual, 300, MODEL)
        write(short, 300, MODEL, answer=SHORT)
        rows = [(name, *both, False, usual) for name, both in SAME.items()]
        rows += [("sigmoid, LoRA", *SAME["sigmoid"], True, usual)]
        rows += [(f"{name}, answers of {SHORT} tokens", *SAME[name], False, short) for name in MAGNIFYING]
        for number, (name, objective, options, lora, data) in enumerate(rows):
            a = Contender(ours, data, data / f"a{number}", {"objective": objective, "lora": lora})
            b = Contender(theirs, data, data / f"b{number}", {"config": options, "lora": lora})
            said = [(a.first, b.first), *((a.turn(1), b.turn(1)) for _ in range(STEPS - 1))]
            worst = {what: max(_apart(x[what][0], y[what][0]) for x, y in said) for what in ("losses", "norms")}
            first, last = said[0][0]["losses"][0], said[-1][0]["losses"][0]
            within = "yes" if max(worst.values()) <= AGREE else "no"
            print(
                f"| {name} | {first:.5f} | {last:.5f} | {worst['losses']:.1e} | {worst['norms']:.1e} | {within} |",
                flush=True,
            )
            a.end()
            b.end()
    print(OTHERWISE, end="")


def _apart(one: float, other: float) -> float:
    return abs(one - other) / max(abs(other), 1e-3)


if __name__ == "__main__":
    main()
