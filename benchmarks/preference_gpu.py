"""The rows of preference.py on a GPU: 8 B weights in bf16, each trainer at the best of its own options.

    /tmp/trl/bin/python -m benchmarks.preference        # on a machine with a GPU

Weights are random: speed and memory do not ask what they say. Both trainers would not fit side by side, so each turn
(A B B A) is a process of its own, which warms up for three steps and is then timed over the next ones, with the device
synchronised at both ends. Useful arithmetic is counted once, for ours (`mmjobs.metrics.mfu`), and the peer does the
same work: its share of the peak is what its own speed makes of it. `--toy` runs the same rows with few weights.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.contender import Contender, Died, Trainer
from benchmarks.preference_trainers import ours, theirs, write

WARM, TIMED, ROWS = 3, 20, 512
FEW = 2  # timed steps of a toy
AGREE = 2e-2
LARGE: dict[str, Any] = {
    "vision": {"random": {"width": 1024, "layers": 24, "heads": 16, "image_size": 336, "patch": 14}},
    "language": {"random": {"width": 4096, "layers": 32, "heads": 32, "max_positions": 8192}},
}
"""CLIP-L/14 at 336 pixels, and a LLaMA of 6.4 B weights in its layers beside a vocabulary of 128,256."""
TOY: dict[str, Any] = {
    "vision": {"random": {"width": 32, "layers": 2, "heads": 2, "image_size": 56, "patch": 14}},
    "language": {"random": {"width": 64, "layers": 2, "heads": 2, "max_positions": 2048}},
}
REGIMES: dict[str, dict[str, Any]] = {"LoRA, rank 64": {"lora": True, "rank": 64}, "full, bf16 states": {}}
OURS = [{"pairs": pairs, "tokens": 1024 * pairs} for pairs in (4, 8, 16)]
THEIRS = [
    {"pairs": pairs, "checkpointing": saves} for pairs in (2, 4, 8, 16) for saves in (False, True) if pairs > 2 or saves
]
HEAD = """\
| | trainer | options | pairs/s (least to most) | ratio | share of the peak | GB | ratio |
|---|---|---|---|---|---|---|---|"""
GB = 1e9


def compare(folder: Path, rounds: int, toy: bool, only: list[str]) -> None:
    """Print the rows of each regime: what each option gives, then the best of both, in turns."""
    data = folder / "data"
    data.mkdir()
    write(data, 384 if toy else 128_256, TOY if toy else LARGE, ROWS, half=not toy)
    print(HEAD, flush=True)
    for regime, options in REGIMES.items():
        if not any(word in regime for word in only):
            continue
        common = {**options, "gpu": not toy, "steps": WARM + (FEW if toy else TIMED)}
        a, b = (
            _best(folder, trainer, [common | one for one in tried], data)
            for trainer, tried in ((ours, OURS), (theirs, THEIRS))
        )
        mine: list[dict[str, Any]] = []
        other: list[dict[str, Any]] = []
        for number in range(2 * rounds):
            for trainer, chosen, said in ((ours, a, mine), (theirs, b, other))[:: -1 if number % 2 else 1]:
                said.append(_turn(folder, trainer, chosen, data))
        if a["pairs"] == b["pairs"]:
            first = [one["begun"]["losses"][0] for one in (mine[0], other[0])]
            assert abs(first[0] - first[1]) < AGREE * max(1.0, first[1]), f"first losses {first} are not the same"
        ratio = statistics.median(x["rate"] / y["rate"] for x, y in zip(mine, other, strict=True))
        useful = mine[-1]["mfu"]
        rates = [[one["rate"] for one in some] for some in (mine, other)]
        lowest = [min(one["peak"] for one in some) for some in (mine, other)]
        for name, chosen, rate, peak, better in (
            ("mmlaunch", a, rates[0], lowest[0], f"{ratio:.2f}"),
            ("TRL", b, rates[1], lowest[1], ""),
        ):
            share = useful and useful * statistics.median(rate) / statistics.median(rates[0])
            settings = ", ".join(
                f"{key} {chosen[key]}" for key in ("pairs", "tokens", "checkpointing") if key in chosen
            )
            spread = f"{statistics.median(rate):.2f} ({min(rate):.2f} to {max(rate):.2f})"
            shown = f"{share:.0%}" if share else "not known"
            smaller = f"{peak / lowest[1]:.2f}" if better else ""
            print(f"| {regime} | {name} | {settings} | {spread} | {better} | {shown} | {peak / GB:.1f} | {smaller} |")


def _best(folder: Path, trainer: Trainer, tried: list[dict[str, Any]], data: Path) -> dict[str, Any]:
    """The options that are fastest, of those that fit."""
    rates: list[tuple[float, int]] = []
    for number, options in enumerate(tried):
        try:
            rates.append((_turn(folder, trainer, options, data)["rate"], number))
        except Died as words:
            if "out of memory" not in str(words):
                raise
    if not rates:
        raise SystemExit(f"{trainer.__name__}: none of {len(tried)} sets of options fits this GPU")
    return tried[max(rates)[1]]


def _turn(folder: Path, trainer: Trainer, options: dict[str, Any], data: Path) -> dict[str, Any]:
    """One process: warmed up, timed, ended."""
    own = folder / f"{trainer.__name__}-{len(list(folder.iterdir()))}"
    work = Contender(trainer, data, own, options)
    work.turn(WARM - 1)
    timed = options["steps"] - WARM
    said = work.turn(timed)
    work.end()
    return {**said, "begun": work.first, "rate": timed * options["pairs"] / said["seconds"]}
