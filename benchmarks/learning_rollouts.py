"""Does reinforcement learning learn? A short SFT, a reward model, then PPO, GRPO and RLOO, on drawings never seen.

    .venv/bin/python -m benchmarks.learning_rollouts [NAME ...] > benchmarks/results/DATE-learning-rollouts.md

The SFT ends early. PPO gets its rewards from the reward model alone, which has seen pairs of answers; GRPO and RLOO
compare with the right answer. Last come two wrong rewards, and `mmlaunch report` has to tell: the one pays for length,
the other for an answer that is always the same. All are measured by the likeliest answers to 480 held-out drawings, how
many are right; PPO and the wrong rewards are not rewarded for that.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmlaunch.api import load, submit
from mmlaunch.monitor import rollouts

SEEDS = (0, 1, 2)
BASE = """\
name: NAME
model:
  vision: {random: {width: 96, layers: 2, heads: 4, image_size: 32, patch: 8}}
  projector: mlp
  language: {random: {width: 96, layers: 2, heads: 4}}
  train: {vision: full, projector: full, language: full}
data:
  train: {format: shapes, limit: 6000}
  eval: {format: shapes, skip: 1000000, limit: 480}
  workers: 0
precision: fp32
log: {every: 10}
resources: {nodes: 1, gpus_per_node: 0, tasks_per_node: 2, time: 2h}
seed: SEED
"""
SFT = """\
objective: sft
optim: {lr: 1.5e-3, schedule: cosine, warmup: 20 steps, weight_decay: 0.01}
batch: {global: 64}
steps: 90
evaluate: {every: 90 steps, samples: 0}
checkpoint: {every: 90 steps}
"""
REWARD = """\
objective: {method: reward, centre: 0.01}
optim: {lr: 1e-3, schedule: cosine, warmup: 20 steps, weight_decay: 0.01}
batch: {global: 64}
steps: 500
evaluate: {every: 500 steps, samples: 0}
checkpoint: {every: 500 steps}
"""
ROLLOUTS = """\
objective: OBJECTIVE
evaluate: {every: 25 steps, samples: 0}
checkpoint: {every: 100 steps}
"""
USUAL = "batch: {global: 256}\nsteps: 100\noptim: {lr: 2e-4, schedule: constant, warmup: 5 steps}"
METHODS = {
    "ppo": (
        "{method: ppo, rewards: [{path: RM}, {function: exact, weight: 0}], kl: 0.05, epochs: 2, rollouts: 256, "
        "sampling: {answers: 1, max_new_tokens: 16, prompts: 32}, "
        "shaping: {clip: 5, no_end: replace, no_end_reward: -3}, "
        "critic: {lr: 1e-3, warmup_steps: 8}}",
        "batch: {global: 128}\nsteps: 200\noptim: {lr: 4e-4, schedule: cosine, warmup: 5 steps}",
    ),
    "grpo": (
        "{method: grpo, rewards: exact, clip_high: 0.28, rollouts: 512, "
        "sampling: {answers: 4, max_new_tokens: 16, prompts: 32}}",
        USUAL,
    ),
    "rloo": (
        "{method: rloo, rewards: exact, kl: 0.02, rollouts: 512, "
        "sampling: {answers: 4, max_new_tokens: 16, prompts: 32}}",
        USUAL,
    ),
    "wrong: length": (
        "{method: grpo, rewards: [{function: length, options: {target: 40}}, {function: exact, weight: 0}], "
        "rollouts: 512, sampling: {answers: 4, max_new_tokens: 48, prompts: 32}}",
        USUAL,
    ),
    "wrong: always red": (
        "{method: grpo, rewards: ['wrong.py:red', {function: exact, weight: 0}], rollouts: 512, "
        "sampling: {answers: 4, max_new_tokens: 16, prompts: 32}}",
        USUAL,
    ),
}
"""By name: the objective, and how it is trained."""
RED = """\
def red(answer, truth):
    return float(answer.startswith("r")) + float(answer == "red")
"""


def run(name: str, text: str, folder: Path, seed: int, **start: Path) -> Any:
    """Train one recipe to its end."""
    word = re.sub(r"\W+", "-", name)
    path = folder / f"{word}-{seed}.yaml"
    (folder / "wrong.py").write_text(RED)
    own = BASE.replace("NAME", f"{word}-{seed}").replace("SEED", str(seed)) + text
    for key, value in start.items():
        own = (
            own.replace("model:\n", f"model:\n  init_from: {value}\n")
            if key == "init_from"
            else own.replace(key, str(value))
        )
    path.write_text(own)
    made = submit(load(path), cluster="local")
    status = made.wait()
    assert status.state == "done", f"{name}: {status}"
    return made


def evaluated(made: Any, name: str) -> list[float]:
    return [event["metrics"][name] for event in made.events() if event["event"] == "evaluated"]


def main() -> None:
    print(f"# What reinforcement learning learns, {date.today()}\n")
    print(f"`python -m benchmarks.learning_rollouts`, torch {version('torch')}, two ranks on two cores\n")
    print("| seed | run | minutes | reward, held out | right, held out | KL of an answer |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder, notes = Path(name), list[str]()
        os.environ["MMLAUNCH_RUNS"] = name
        for seed in SEEDS:
            began = time.monotonic()
            sft = run("sft", SFT, folder, seed)
            print(f"| {seed} | sft | {_minutes(began)} | | {evaluated(sft, 'eval/accuracy')[-1]:.3f} | |", flush=True)
            began = time.monotonic()
            reward = run("rm", REWARD, folder, seed)
            accuracy = evaluated(reward, "eval/accuracy")[-1]
            print(f"| {seed} | reward model | {_minutes(began)} | accuracy {accuracy:.3f} | | |", flush=True)
            for method in sys.argv[1:] or METHODS:
                if seed and method.startswith("wrong"):
                    continue
                began = time.monotonic()
                objective, training = METHODS[method]
                text = ROLLOUTS.replace("OBJECTIVE", objective) + training + "\n"
                made = run(method, text, folder, seed, init_from=sft.paths.root, RM=reward.paths.root)
                row(method, seed, made, began)
                notes += [f"{method}, seed {seed}: {text}" for text in looks(made)]
        print("\nWhat `mmlaunch report` says of these runs:\n")
        print("\n".join(f"* {note}" for note in notes))


def looks(made: Any) -> list[str]:
    found = rollouts.of(made.paths)
    return found.warnings() if found is not None else []


def _minutes(began: float) -> str:
    return f"{(time.monotonic() - began) / 60:.1f}"


def row(method: str, seed: int, made: Any, began: float) -> None:
    rewards = "  ".join(f"{value:.2f}" for value in evaluated(made, "eval/reward"))
    kl = next((event.get("kl_sequence") for event in reversed(list(made.events())) if event["event"] == "step"), None)
    right = evaluated(made, "eval/right")
    shown = "  ".join(f"{value:.3f}" for value in right)
    print(
        f"| {seed} | {method} | {_minutes(began)} | {rewards} | {shown} | {'' if kl is None else f'{kl:.1f}'} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
