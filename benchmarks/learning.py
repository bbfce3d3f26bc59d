"""Do they learn what they promise? Preferences and rewards from nothing, on drawings, measured on drawings never seen.

    .venv/bin/python -m benchmarks.learning [NAME ...] > benchmarks/results/DATE-learning.md

Each run is a recipe on the local executor. The right answer stands against a wrong one of the same kind ("red" against
"blue"), so that only the image tells; a reward model also ranks an answer to another question last. The last column is
how often the chosen answer is likelier with its own image than with a piece of it blown up (mDPO's corrupted image);
plain DPO measures it with a weight of a millionth.

A loss and a metric that mistake chosen for rejected alike would look perfect. So the trained model itself is asked
as well, with a plain forward of the network on one drawing and one answer at a time: which of what is drawn and what is
not it holds for likelier, or scores higher. Less than half would be the wrong way round, and is an error.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mmjobs.data.encode import Processor
from mmjobs.data.example import Answer, Example
from mmjobs.data.formats import shapes
from mmjobs.model.restore import restore
from mmlaunch.api import load, submit
from mmlaunch.recipe import Recipe, resolved
from mmlaunch.run.paths import RunPaths

ASKED, UNSEEN = 200, 200_000
"""How many drawings the trained model is asked about, and the first of them."""

RECIPE = """\
name: learning
model: {vision: {random: {}}, language: {random: {}}, train: {vision: full}}
data:
  train: {format: shapes, limit: 6000}
  eval: {format: shapes, skip: 100000, limit: 480}
  workers: 0
objective: OBJECTIVE
optim: {lr: 1.5e-3, warmup: 20 steps, weight_decay: 0.01}
batch: {global: 64}
steps: 300
precision: fp32
evaluate: {every: 50 steps, samples: 0}
checkpoint: {every: 300 steps}
log: {every: 50}
resources: {nodes: 1, gpus_per_node: 0, tasks_per_node: 1, cpus_per_rank: 1}
"""
RUNS = {
    "dpo": ("{method: dpo, terms: {image_conditional: 1e-6}}", "accuracy"),
    "mdpo": ("mdpo", "accuracy"),
    "mpo": ("mpo", "accuracy"),
    "mmpo": ("{method: mmpo, beta: 0.1}", "accuracy"),
    "reward": ("reward", "accuracy"),
}


def main() -> None:
    print(f"# What is learnt, {date.today()}\n")
    print(f"`python -m benchmarks.learning`, torch {version('torch')}, one rank on one core for each run\n")
    print("| objective | minutes | accuracy after 50, 100 ... steps | against a spoiled image | right when asked |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MMLAUNCH_RUNS"] = folder
        for name in sys.argv[1:] or RUNS:
            objective, metric = RUNS[name]
            path = Path(folder) / f"{name}.yaml"
            path.write_text(RECIPE.replace("OBJECTIVE", objective))
            began = time.monotonic()
            run = submit(load(path), cluster="local")
            status = run.wait()
            assert status.state == "done", f"{name}: {status}"
            found = [event["metrics"] for event in run.events() if event["event"] == "evaluated"]
            curve = "  ".join(f"{100 * one[f'eval/{metric}']:.0f} %" for one in found)
            corrupted = found[-1].get("eval/conditional_accuracy")
            shown = "" if corrupted is None else f"{100 * corrupted:.1f} %"
            right = asked(run.paths, resolved.read(run.paths.resolved))
            assert right > 0.5, f"{name} holds what is not drawn for likelier: {right:.0%} right"
            shown += f" | {100 * right:.1f} %"
            print(f"| {name} | {(time.monotonic() - began) / 60:.1f} | {curve} | {shown} |", flush=True)


def asked(paths: RunPaths, recipe: Recipe) -> float:
    """How often the trained model prefers the answer that is drawn, each answer on its own."""
    built = restore(recipe, paths.checkpoint(recipe.steps or 0))
    network: Any = built.network.eval()
    processor = Processor(built.chat, built.pixels, recipe.data.max_tokens)
    right = 0
    for number in range(UNSEEN, UNSEEN + ASKED):
        example = shapes.example(number)
        drawn, other = (answer.text for answer in example.answers[:2])
        right += opinion(network, processor, example, drawn) > opinion(network, processor, example, other)
    return right / ASKED


@torch.no_grad()
def opinion(network: Any, processor: Processor, example: Example, text: str) -> float:
    """The score of an answer, or its log-probability."""
    one = processor.encode(replace(example, answers=(Answer(text),)))
    ids, start = torch.tensor([[*one.prompt.ids, *one.answers[0].ids]]), len(one.prompt)
    if hasattr(network, "score"):
        return float(network.score(network.model(input_ids=ids, **one.image_inputs).last_hidden_state[0, -1]))
    scores = network(input_ids=ids, **one.image_inputs).logits[0, start - 1 : -1].log_softmax(-1)
    return float(scores.gather(-1, ids[0, start:, None]).sum())


if __name__ == "__main__":
    main()
