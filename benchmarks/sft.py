"""SFT throughput and peak memory against TRL's SFTTrainer: the same toy LLaVA, weights, examples, order and batch.

    /tmp/trl/bin/python -m benchmarks.sft [--rounds 3] > benchmarks/results/DATE-sft.md

TRL is no dependency: it stands in an environment of its own that sees the project's packages.

    .venv/bin/python -m venv /tmp/trl; SITE=lib/python3.11/site-packages
    echo "import site; site.addsitedir('$PWD/.venv/$SITE')" > /tmp/trl/$SITE/project.pth
    /tmp/trl/bin/pip install --no-deps trl==1.16.0      # and accelerate, where the project has none

Each trainer is a process of its own with one thread, and works only when it is its turn: A B B A. Before anything is
timed, the losses of the first step have to agree. A ratio is the median over neighbours, in process CPU time. Memory
is the most that a process has while it trains, less what it had before it built the model: libraries do not count.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.contender import Contender
from benchmarks.sft_trainers import BATCH, RECIPE, ours, theirs

ROWS, STEPS = 2048, 2  # examples in all, steps of a turn
MEDIAN, SPREAD, SHORTEST, LONGEST = 60, 0.9, 2, 400  # tokens of an answer, log-normal
AGREE, FASTER, SMALLER = 1e-4, 1.5, 0.7
PEERS: dict[str, dict[str, Any]] = {
    "as it comes: 16 at once, activation checkpointing": {},
    "16 at once, no checkpointing": {"gradient_checkpointing": False},
    "4 x 4, no checkpointing": {
        "gradient_checkpointing": False, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4,
    },
    "16 x 1 (nothing is padded), no checkpointing": {
        "gradient_checkpointing": False, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 16,
    },
}  # fmt: skip
HEAD = """\
| TRL with | samples/s: mmlaunch | TRL | ratio (least to most) | MB: mmlaunch | TRL | ratio | goals met |
|---|---|---|---|---|---|---|---|"""
ABOUT = """\
Toy LLaVA (CLIP frozen, projector and LLaMA trained), fp32, AdamW, {batch} examples a step, one image each; answers of
{shape}. mmlaunch shares_rows them in rows of {budget} tokens, without activation checkpointing.
The losses of the first step agree to 1e-4. Goals: 1.5 times the samples per second, 0.7 times the memory.
"""
NOTES = """
In the first two rows TRL takes the batch as it is, in one pass: it computes on the padding, and keeps all of it. In the
last two it takes the batch in pieces; one by one nothing is padded, and it needs as little memory as packed rows do.
"""
MB = 2**20


def write(data: Path) -> list[int]:
    """The weights that both start from, and drawings with an answer of some length each; the tokens of the answers."""
    from mmjobs.data.formats import shapes
    from mmjobs.model.build import build
    from mmlaunch.recipe.check import recipe_of

    built = build(recipe_of(RECIPE).model)
    built.network.save_pretrained(data / "model")
    built.processor.save_pretrained(data / "model")
    dice, rows, lengths = random.Random(0), [], []
    for number in range(ROWS):
        example = shapes.example(number)
        example.images[0].open().resize((64, 64)).save(data / f"{number}.png")
        lengths.append(round(min(LONGEST, max(SHORTEST, dice.lognormvariate(math.log(MEDIAN), SPREAD)))))
        answer = "".join(dice.choice("abcdefghijklmnop") for _ in range(lengths[-1] - 1))  # a byte is a token
        question = f"<image>{example.prompt[0].text.removeprefix('<image>')}"
        talk = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        rows.append({"image": f"{number}.png", "conversations": talk})
    (data / "rows.json").write_text(json.dumps(rows))
    return lengths


def row(name: str, data: Path, own: Path, rounds: int) -> str:
    """One line of the table."""
    a, b = Contender(ours, data, own, {}), Contender(theirs, data, own, PEERS[name])
    mine, other = a.first["losses"][0], b.first["losses"][0]
    assert abs(mine - other) < AGREE, f"the first step is not the same: {mine} and {other}"
    seconds: dict[str, list[float]] = {"mmlaunch": [], "TRL": []}
    ratios = []
    for number in range(rounds + 1):
        first, second, third, fourth = said = [one.turn(STEPS) for one in (a, b, b, a)]
        if number:  # the first round warms caches
            seconds["mmlaunch"] += [first["seconds"], fourth["seconds"]]
            seconds["TRL"] += [second["seconds"], third["seconds"]]
            ratios += [second["seconds"] / first["seconds"], third["seconds"] / fourth["seconds"]]
    a.end()
    b.end()
    rates = [STEPS * BATCH / statistics.median(seconds[trainer]) for trainer in ("mmlaunch", "TRL")]
    faster, smaller = statistics.median(ratios), said[3]["added"] / said[2]["added"]
    met = "yes" if faster >= FASTER and smaller <= SMALLER else "only speed" if faster >= FASTER else "no"
    met = "only memory" if met == "no" and smaller <= SMALLER else met
    return (
        f"| {name} | {rates[0]:.1f} | {rates[1]:.1f} | {faster:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
        f"| {said[3]['added'] / MB:.0f} | {said[2]['added'] / MB:.0f} | {smaller:.2f} | {met} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}  # of both
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        lengths = write(data)
        most = statistics.quantiles(lengths, n=20)[-1]
        print(f"# SFT against TRL {version('trl')}, {date.today()}\n")
        where = f"Python {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}"
        print(f"`python -m benchmarks.sft --rounds {rounds}`, {where}, one of {os.cpu_count()} cores\n")
        shape = (
            f"{min(lengths)} to {max(lengths)} tokens, median {statistics.median(lengths):.0f}, 95 % up to {most:.0f}"
        )
        print(ABOUT.format(batch=BATCH, shape=shape, budget=RECIPE["batch"]["tokens_per_gpu"]))
        print(HEAD, flush=True)
        for number, name in enumerate(PEERS):
            own = data / f"peer-{number}"
            print(row(name, data, own, rounds), flush=True)
    print(NOTES, end="")


if __name__ == "__main__":
    main()
