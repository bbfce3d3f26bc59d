"""How fast answers are generated and learnt from: against transformers' generate, and against rows that repeat prompts.

    .venv/bin/python -m benchmarks.rollout > benchmarks/results/DATE-rollout.md

Everything in one process on one core, turn by turn, so that both sides meet the same machine. The model is that of the
preference benchmark: a LLaVA with a LLaMA of width 512 and 8 layers, 576 image tokens and about 20 of question. Every
answer has the same length (nothing may end it), so both sides make as many tokens; both keep keys and values, draw at
temperature 1, and end at the same length. transformers gets the prompts as its users give them: padded on the left, each
repeated for each of its answers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from typing import Any

import torch
from benchmarks.preference_trainers import RECIPE

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
from mmlaunch.recipe.reinforcement import Grpo
from mmlaunch.recipe.rewards import RewardSource
from mmlaunch.recipe.sampling import Sampling

ROUNDS, TOKENS, ANSWER, GROUP = 3, 64, 140, 8
Work = Callable[[], Any]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    built = build(recipe_of(RECIPE | {"model": RECIPE["model"]}).model)
    built.network.eval()
    processor = Processor(built.chat, built.pixels, 2048)
    prompts = [processor.prompt(shapes.example(number)) for number in range(8)]
    print(f"# Rollouts, {date.today()}\n")
    print(
        f"`python -m benchmarks.rollout`, torch {version('torch')}, transformers {version('transformers')}, fp32, one core\n"
    )
    print(f"{ROUNDS} rounds, turn by turn; medians, and the range of the ratios\n")
    print("| what | ours | theirs | ratio |\n|---|---|---|---|", flush=True)
    for count, answers in ((8, 1), (1, 4), (2, 8)):
        sampling = Sampling(max_new_tokens=TOKENS, min_new_tokens=TOKENS - 1, answers=answers)
        made = count * answers * TOKENS
        a, b = turns(lambda: ours(built, prompts[:count], sampling), lambda: theirs(built, prompts[:count], sampling))
        row(f"generated tokens a second, {count} prompts x {answers} answers against `generate`", made, a, b)
    update(built, prompts)
    print(f"\nPeak memory of this process: {memory() / 1e9:.2f} GB")


def turns(*works: Work) -> list[list[float]]:
    """The seconds of each, in each round, after one that does not count."""
    seconds: list[list[float]] = [[] for _ in works]
    for number in range(ROUNDS + 1):
        for place, work in enumerate(works):
            began = time.perf_counter()
            work()
            if number:
                seconds[place].append(time.perf_counter() - began)
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
    """A forward and a backward pass over one group of answers: one row of a prompt and its answers, or a row for each."""
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
    objective = Policy(Grpo(method="grpo", rewards=[RewardSource(function="exact")], sampling=Sampling(answers=GROUP)))
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
