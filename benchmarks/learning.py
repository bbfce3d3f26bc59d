"""Do they learn what they promise? Preferences and rewards from nothing, on drawings, measured on drawings never seen.

    .venv/bin/python -m benchmarks.learning [NAME ...] > benchmarks/results/DATE-learning.md

Each run is a recipe on the local executor. The right answer stands against a wrong one of the same kind ("red" against
"blue"), so that only the image tells; a reward model also ranks an answer to another question last. The last column is
how often the chosen answer is likelier with its own image than with a piece of it blown up (mDPO's corrupted image);
plain DPO measures it with a weight of a millionth.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from mmlaunch.api import load, submit

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
    print("| objective | minutes | accuracy after 50, 100 ... steps | against a spoiled image, at the end |")
    print("|---|---|---|---|")
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
            print(f"| {name} | {(time.monotonic() - began) / 60:.1f} | {curve} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
