"""How fast answers are generated and learnt from, and how fast whole steps of GRPO are.

    .venv/bin/python -m benchmarks.rollout [--trl] > benchmarks/results/DATE-rollout.md

Turn by turn on one core, so that both sides meet the same machine. The model is that of the preference benchmark: a
LLaVA with a LLaMA of width 512 and 8 layers, 576 image tokens and about 20 of question. In the first rows every answer
has the same length (nothing may end it), so both sides make as many tokens; both keep keys and values, draw at
temperature 1, and end at the same length. transformers gets the prompts as its users give them: padded on the left,
each repeated for each of its answers. With --trl (which has to be installed), whole steps of TRL's GRPOTrainer:
rollout_trainers.py.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmarks import rollout_trainers
from benchmarks.contender import Contender
from benchmarks.preference_trainers import RECIPE, write

from mmjobs.data.batch import collate
from mmjobs.data.chat import Tokens
from mmjobs.data.encode import Encoded, Processor
from mmjobs.data.formats import shapes
from mmjobs.metrics.throughput import memory
from mmjobs.model.build import BuiltModel, build
from mmjobs.model.generate import Vocabulary, generate
from mmjobs.model.sampling import Draws
from mmjobs.objectives.policy import ADVANTAGE, OLD, VALID, Policy
from mmlaunch.recipe.check import recipe_of
from mmlaunch.recipe.reinforcement import Eight, Grpo
from mmlaunch.recipe.rewards import RewardSource
from mmlaunch.recipe.sampling import Sampling

ROUNDS, TOKENS, ANSWER, GROUP = 3, 64, 140, 8
Work = Callable[[], Any]


def main() -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    built = build(recipe_of(RECIPE | {"model": RECIPE["model"]}).model)
    built.network.eval()
    processor = Processor(built.chat, built.pixels, 2048)
    prompts = [processor.prompt(shapes.example(number)) for number in range(8)]
    print(f"# Rollouts, {date.today()}\n")
    where = f"torch {version('torch')}, transformers {version('transformers')}"
    print(f"`python -m benchmarks.rollout {' '.join(sys.argv[1:])}`, {where}, fp32, one core\n")
    print(f"{ROUNDS} rounds, turn by turn; medians, and the range of the ratios\n")
    print("| what | ours | theirs | ratio |\n|---|---|---|---|", flush=True)
    for count, answers in ((8, 1), (1, 4), (2, 8)):
        sampling = Sampling(max_new_tokens=TOKENS, min_new_tokens=TOKENS - 1, answers=answers)
        made = count * answers * TOKENS
        both = [partial(side, built, prompts[:count], sampling) for side in (ours, theirs)]
        a, b = turns(*both)
        row(f"generated tokens a second, {count} prompts x {answers} answers against `generate`", made, a, b)
    update(built, prompts)
    print(f"\nPeak memory of this process: {memory() / 1e9:.2f} GB")
    if "--trl" in sys.argv:
        against_trl()


def against_trl() -> None:
    """Whole steps: the first have the same answers, and must have the same losses and gradients."""
    count = rollout_trainers.PROMPTS * rollout_trainers.ANSWERS
    about = (
        f"{rollout_trainers.PROMPTS} prompts x {rollout_trainers.ANSWERS} answers of {rollout_trainers.TOKENS} tokens"
    )
    print(f"\n## Whole steps against TRL {version('trl')}\n\nCPU seconds of a step: {about}\n")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        write(data, 32_000)
        sides = [
            Contender(trainer, data, Path(folder) / trainer.__name__, {})
            for trainer in (rollout_trainers.ours, rollout_trainers.theirs)
        ]
        said = [one.first for one in sides]
        for step in range(rollout_trainers.GIVEN):
            for what in ("losses", "norms"):
                x, y = (one[what][0] for one in said)
                assert abs(x - y) <= 2e-3 * max(1.0, abs(y)), f"step {step + 1}: {what} {x} and {y} are not the same"
            said = [one.turn(1) for one in sides]
        rounds = [[one.turn(1) for one in sides] for _ in range(ROUNDS)]
        seconds = [[pair[place]["seconds"] for pair in rounds] for place in range(2)]
        print("| what | ours | theirs | ratio |\n|---|---|---|---|", flush=True)
        row("answers learnt a CPU second, whole steps", count, seconds[0], seconds[1])
        print("\nOurs, the seconds of the last step's phases: ", end="")
        phases = rounds[-1][0]["phases"]
        print(", ".join(f"{name.removeprefix('seconds_')} {value:.2f}" for name, value in sorted(phases.items())))
        peaks = [rounds[-1][place]["added"] / 1e6 for place in range(2)]
        print(f"\nMemory beyond the weights, MB: ours {peaks[0]:.0f}, TRL {peaks[1]:.0f}")
        for one in sides:
            one.end()


def turns(*works: Work) -> list[list[float]]:
    """The CPU seconds of each, in each round, after one that does not count."""
    seconds: list[list[float]] = [[] for _ in works]
    for number in range(ROUNDS + 1):
        for place, work in enumerate(works):
            began = time.process_time()
            work()
            if number:
                seconds[place].append(time.process_time() - began)
    return seconds


def row(what: str, units: int, a: Sequence[float], b: Sequence[float]) -> None:
    ratios = sorted(y / x for x, y in zip(a, b, strict=True))
    shown = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    each = [units / statistics.median(one) for one in (a, b)]
    print(f"| {what} | {each[0]:.1f} | {each[1]:.1f} | {shown} |", flush=True)


def ours(built: BuiltModel, prompts: Sequence[Encoded], sampling: Sampling) -> None:
    vocabulary = Vocabulary(built.network, built.chat, sampling)
    draws = [Draws(0, prompt, number) for prompt in range(len(prompts)) for number in range(sampling.answers)]
    made = generate(built.network, prompts, draws, vocabulary, sampling, built.pixels)
    assert all(len(one.ids) == TOKENS for one in made)


def theirs(built: BuiltModel, prompts: Sequence[Encoded], sampling: Sampling) -> None:
    longest = max(len(prompt.prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(one.prompt)) + one.prompt.ids for one in prompts])
    attention = torch.tensor([[0] * (longest - len(one.prompt)) + [1] * len(one.prompt) for one in prompts])
    images = built.pixels.join([prompt.image_inputs for prompt in prompts], ids)
    network: Any = built.network
    with torch.no_grad():
        made = network.generate(
            input_ids=ids, attention_mask=attention, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=sampling.answers, max_new_tokens=TOKENS, min_new_tokens=TOKENS, pad_token_id=0,
            **images,
        )  # fmt: skip
    assert made.shape == (len(prompts) * sampling.answers, longest + TOKENS)


def update(built: BuiltModel, prompts: Sequence[Encoded]) -> None:
    """Forward and backward over one group of answers: one row of a prompt and its answers, or a row for each."""
    generator = torch.Generator().manual_seed(1)
    lengths = [ANSWER + 8 * (number - GROUP // 2) for number in range(GROUP)]
    answers = tuple(
        Tokens(torch.randint(97, 113, (length,), generator=generator).tolist(), [True] * length) for length in lengths
    )
    count = sum(lengths)
    numbers = {
        OLD: torch.full((count,), -5.0),
        ADVANTAGE: torch.randn(count, generator=generator),
        VALID: torch.ones(count),
    }
    group = replace(prompts[0], answers=answers, scores=(None,) * GROUP, token_values=numbers)
    objective = Policy(Grpo(method="grpo", rewards=[RewardSource(function="exact")], sampling=Eight(answers=GROUP)))
    losses: dict[bool, float] = {}

    def work(packed: bool) -> None:
        built.network.zero_grad()
        output = objective(built.network, collate([group], built.pixels, 0, packed=packed))
        output.losses["policy"].backward()
        losses[packed] = float(output.losses["policy"].detach())

    built.network.train()
    a, b = turns(lambda: work(True), lambda: work(False))
    assert abs(losses[True] - losses[False]) < 1e-3 * abs(losses[False]), losses
    what = f"answer tokens learnt a second, {GROUP} answers to a prompt, against padded rows that repeat it"
    row(what, count, a, b)


if __name__ == "__main__":
    main()
