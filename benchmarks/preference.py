"""Preference training against TRL's DPOTrainer: the same small LLaVA, weights, pairs, order, tokens and pixels.

    /tmp/trl/bin/python -m benchmarks.preference [--rounds 5] [--only WORD ...] > benchmarks/results/DATE-preference.md

sft.py tells how TRL gets an environment of its own. Each trainer is a process with one thread, and works only when it
is its turn: A B B A. Before anything is timed, the losses and the norms of the gradients of the first three steps have
to agree. A ratio is the median over neighbours, in process CPU time. Memory is the most that a process has while it
trains, less what it had before it built the model: libraries do not count.

On a CPU, TRL scores every row of the vocabulary's head, images included; "compact" switches on what it does on a GPU,
where only the answers are scored. The reference: ours is measured once before the first step. "cached" does not count
that (a second epoch, another run with the same reference), "all-in" charges one measurement to each step.

Where there is a GPU, preference_gpu.py has the rows instead: 8 B weights in bf16.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import preference_gpu
from benchmarks.contender import Contender
from benchmarks.preference_trainers import PAIRS, RECIPE, ours, theirs, write

AGREE = 2e-4
UNSHIFTED = 2
"""TRL's bco has no shift; ours moves from the third step on, for the first rewards are all 0."""
COMPARED: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "full, compact head, checkpointing as each ships it": (32_000, {}, {"compact": True, "checkpointing": True}),
    "full, compact head, no checkpointing": (32_000, {}, {"compact": True}),
    "full, as shipped": (32_000, {}, {"checkpointing": True}),
    "LoRA, compact head, checkpointing as each ships it": (
        32_000, {"lora": True}, {"lora": True, "compact": True, "checkpointing": True},
    ),
    "LoRA, compact head, no checkpointing": (32_000, {"lora": True}, {"lora": True, "compact": True}),
    "MPO, full, compact head, no checkpointing": (
        32_000, {"objective": "mpo"},
        {"compact": True, "config": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}},
    ),
    "vocabulary 128k, full, compact head, no checkpointing": (128_000, {}, {"compact": True}),
    "vocabulary 128k, LoRA, compact head, no checkpointing": (
        128_000, {"lora": True}, {"lora": True, "compact": True},
    ),
}  # fmt: skip
"""name -> vocabulary, our options, TRL's."""
_PLAIN = {"rows": True, "checkpointing": True}
SWITCHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no shared prompt: each answer with its image in a row of its own": ({}, {"rows": True}),
    "reference asked at every step (frozen copy)": ({}, {"objective": {"method": "dpo", "reference": "copy"}}),
    "activation checkpointing": ({}, {"checkpointing": True}),
    "all logits at once": ({}, {"whole_logits": True}),
    "last layer for all tokens": ({}, {"whole_layer": True}),
    "LoRA, no shared prompt": ({"lora": True}, {"lora": True, "rows": True}),
    "LoRA, reference asked at every step (adapter off)": (
        {"lora": True}, {"lora": True, "objective": {"method": "dpo", "reference": "adapter off"}},
    ),
    "LoRA, activation checkpointing": ({"lora": True}, {"lora": True, "checkpointing": True}),
    "LoRA, last layer for all tokens": ({"lora": True}, {"lora": True, "whole_layer": True}),
    "mDPO, in the form of its own code: no shared prompt, live reference, checkpointing": (
        {"objective": "mdpo"}, {**_PLAIN, "objective": {"method": "mdpo", "reference": "copy"}},
    ),
    "reward model, in the form of the public code: no shared prompt, checkpointing": (
        {"objective": "reward"}, {**_PLAIN, "objective": "reward"},
    ),
}  # fmt: skip
"""name -> our options as they are, and with something switched off."""
_SHIPPED = {"compact": True, "checkpointing": True}
SHAPES: dict[str, tuple[int, int, int, int, int]] = {
    "768 wide, 4 layers, 256 image tokens, answers of 40": (768, 4, 12, 224, 40),
    "384 wide, 6 layers, 576 image tokens, answers of 60": (384, 6, 6, 336, 60),
    "256 wide, 12 layers, 256 image tokens, answers of 400": (256, 12, 4, 224, 400),
    "512 wide, 8 layers, 64 image tokens, answers of 140": (512, 8, 8, 112, 140),
}
"""name -> width, layers and heads of the language model, side of the images, tokens of an answer."""
HEAD = """\
| {peer} | s a step: mmlaunch | peer | ratio, cached (least to most) | all-in | MB: mmlaunch | peer | ratio |
|---|---|---|---|---|---|---|---|"""
ABOUT = """\
LLaVA with a LLaMA of width 512 and 8 layers, 576 image tokens, about 20 tokens of question, answers of about 140; fp32,
{pairs} pairs a step, AdamW, the vision tower frozen. Losses and gradient norms of three steps agree to {agree}.
"""
MB = 2**20


def row(name: str, a: Contender, b: Contender, rounds: int, agreeing: int = 3) -> None:
    """Both begin, agree, are measured, and end."""
    agreed(a, b, agreeing)
    print(f"| {name} | {measured(a, b, rounds)}", flush=True)
    a.end()
    b.end()


def measured(a: Contender, b: Contender, rounds: int) -> str:
    """The columns of one row; `a` is ours."""
    seconds: tuple[list[float], list[float]] = [], []
    ratios = []
    for number in range(rounds + 1):
        first, second, third, fourth = said = [one.turn(1) for one in (a, b, b, a)]
        if number:  # the first round warms caches
            seconds[0].extend([first["seconds"], fourth["seconds"]])
            seconds[1].extend([second["seconds"], third["seconds"]])
            ratios += [second["seconds"] / first["seconds"], third["seconds"] / fourth["seconds"]]
    mine, other = (statistics.median(values) for values in seconds)
    charged = other + PAIRS * b.first.get("reference", 0.0)
    all_in = charged / (mine + PAIRS * a.first.get("reference", 0.0))
    ratio, memory = statistics.median(ratios), (said[3]["added"], said[2]["added"])
    return (
        f"{mine:.2f} | {other:.2f} | {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {all_in:.2f} "
        f"| {memory[0] / MB:.0f} | {memory[1] / MB:.0f} | {memory[0] / memory[1]:.2f} |"
    )


def agreed(a: Contender, b: Contender, steps: int) -> None:
    """The first steps have the same losses and gradients."""
    said = [(a.first, b.first), *((a.turn(1), b.turn(1)) for _ in range(steps - 1))]
    for number, (mine, other) in enumerate(said, 1):
        for what in ("losses", "norms"):
            x, y = mine[what][0], other[what][0]
            assert abs(x - y) <= AGREE * max(1.0, abs(y)), f"step {number}: {what} {x} and {y} are not the same"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[""], help="rows whose name has one of these words")
    parser.add_argument("--toy", action="store_true", help="the rows of a GPU with few weights, wherever this is")
    parser.add_argument("--liger", action="store_true", help="on a GPU: ours with model.liger, where it is installed")
    parser.add_argument("--profiles", type=Path, default=Path("profiles"), help="a folder for the profiles of a GPU")
    given = parser.parse_args()
    gpu = shutil.which("nvidia-smi") is not None
    if find_spec("trl") is None and not (gpu or given.toy):
        parser.error("this compares with TRL: pip install trl==1.16.0")
    peer = f"TRL {version('trl')}" if find_spec("trl") else "TRL"
    print(f"# Preferences against {peer}, {date.today()}\n")
    where = f"Python {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}"
    if gpu or given.toy:
        print(f"`python -m benchmarks.preference`, {where}\n")
        with tempfile.TemporaryDirectory() as folder:
            preference_gpu.compare(Path(folder), given.profiles, given.toy, given.only, given.liger)
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}  # of both
    print(f"`python -m benchmarks.preference --rounds {given.rounds}`, {where}, one of {os.cpu_count()} cores\n")
    print(ABOUT.format(pairs=PAIRS, agree=AGREE))
    with tempfile.TemporaryDirectory() as folder:
        data = {size: Path(folder) / str(size) for size in sorted({row[0] for row in COMPARED.values()})}
        for size, path in data.items():
            path.mkdir()
            write(path, size)
        print(HEAD.format(peer="TRL"), flush=True)
        for number, (name, (size, mine, its)) in enumerate(COMPARED.items()):
            if any(word in name for word in given.only):
                a = Contender(ours, data[size], Path(folder) / f"a{number}", mine)
                b = Contender(theirs, data[size], Path(folder) / f"b{number}", its)
                row(name, a, b, given.rounds, UNSHIFTED if "MPO" in name else 3)
        print("\n" + HEAD.format(peer="TRL, compact head, checkpointing as each ships it"), flush=True)
        for number, (name, shape) in enumerate(SHAPES.items()):
            if any(word in name for word in given.only):
                path = Path(folder) / f"shape{number}"
                path.mkdir()
                write(path, 32_000, _shaped(*shape), answer=shape[-1])
                for lora in (False, True):
                    a = Contender(ours, path, Path(folder) / f"e{number}{lora}", {"lora": lora})
                    b = Contender(theirs, path, Path(folder) / f"f{number}{lora}", {"lora": lora, **_SHIPPED})
                    row(f"{name}: {'LoRA' if lora else 'full'}", a, b, given.rounds)
        print("\n" + HEAD.format(peer="mmlaunch without one of its ways"), flush=True)
        for number, (name, (mine, other)) in enumerate(SWITCHED.items()):
            if any(word in name for word in given.only):
                a = Contender(ours, data[32_000], Path(folder) / f"c{number}", mine)
                b = Contender(ours, data[32_000], Path(folder) / f"d{number}", other)
                row(name, a, b, given.rounds)


def _shaped(width: int, layers: int, heads: int, side: int, _: int) -> dict[str, Any]:
    vision, language = RECIPE["model"]["vision"]["random"], RECIPE["model"]["language"]["random"]
    return {
        "vision": {"random": vision | {"image_size": side}},
        "language": {"random": language | {"width": width, "layers": layers, "heads": heads}},
    }


if __name__ == "__main__":
    main()
