"""The losses of one short run for each objective and ZeRO stage, to compare two states of the code bit for bit.

`python -m benchmarks.losses record FILE` trains them on this machine, in about ten minutes, and writes the numbers of
every step, of every evaluation, and a digest of the last weights. `python -m benchmarks.losses compare BEFORE AFTER`
says which differ. A change of the code that is no change of the numbers leaves all of them equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

RECIPE = """\
name: losses
model:
  vision: {random: {width: 32, layers: 2, heads: 2, image_size: 32, patch: 8}}
  language: {random: {width: 32, layers: 2, heads: 2}}
  dropout: 0.1
data:
  train: {format: shapes, limit: 64}
  eval: {format: shapes, limit: 16, skip: 64}
  max_tokens: 128
  workers: 0
objective: sft
optim: {lr: 1e-3}
batch: {global: 8}
steps: 8
precision: fp32
evaluate: {every: 4 steps, samples: 1}
checkpoint: {every: 4 steps}
log: {every: 1}
resources: {nodes: 1, gpus_per_node: 0, tasks_per_node: 2, cpus_per_rank: 1, time: 10m}
"""
OBJECTIVES = {
    "sft": "sft", "reward": "{method: reward, centre: 0.01}", "dpo": "dpo", "mdpo": "mdpo", "mpo": "mpo",
    "mmpo": "mmpo", "orpo": "orpo", "kto and aot": "{terms: {kto: 1, aot: 0.5}}",
}  # fmt: skip
SYNCED = "objective={method: dpo, reference: copy, reference_sync: {every: 3, mix: 0.5}}"
LORA = ["model.train={vision: frozen, projector: frozen, language: lora}", "model.lora.rank=4"]
TIMES = ("time", "rate", "tokens_per_second", "memory", "mfu", "attempt", "event", "data_wait")
"""Fields of a step event that no two runs have in common."""


def runs() -> Iterator[tuple[str, list[str]]]:
    """The name of each run, and what `-s` changes in the recipe for it."""
    for stage in range(4):
        for name, objective in OBJECTIVES.items():
            yield f"{name}, stage {stage}", [f"objective={objective}", f"deepspeed.stage={stage}"]
    for stage in range(3):
        yield f"a copy that follows, stage {stage}", [SYNCED, f"deepspeed.stage={stage}"]
    yield "sft, packed", ["batch.tokens_per_gpu=256", "deepspeed.stage=1"]
    yield "dpo, packed", ["batch.tokens_per_gpu=512", "objective=dpo", "deepspeed.stage=1"]
    yield "adapter off", ["objective={method: dpo, reference: adapter off}", *LORA, "deepspeed.stage=1"]
    yield "bf16", ["objective=mpo", "precision=bf16", "deepspeed.stage=2"]


def trained(recipe: Path, folder: Path, changes: list[str]) -> dict[str, Any]:
    """What one run has computed."""
    command = [sys.executable, "-m", "mmlaunch", "submit", "--cluster", "local", "--follow", str(recipe)]
    options = [part for change in changes for part in ("-s", change)]
    environment = {**os.environ, "MMLAUNCH_RUNS": str(folder)}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(changes)}: {done.stdout[-500:]}{done.stderr[-1500:]}")
    (run,) = folder.iterdir()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    (weights,) = (run / "checkpoints" / "step-8").rglob("model.safetensors")
    tensors = safetensors.torch.load_file(weights)
    return {
        "steps": [{key: value for key, value in step.items() if key not in TIMES} for step in steps],
        "evaluations": [event["metrics"] for event in events if event["event"] == "evaluated"],
        "weights": {name: _digest(value) for name, value in tensors.items()},
    }


def _digest(value: torch.Tensor) -> str:
    return hashlib.sha256(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def record(file: Path) -> None:
    """Train all runs, and write their numbers after each."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder, "losses.yaml")
        recipe.write_text(RECIPE)
        for number, (name, changes) in enumerate(runs()):
            results[name] = trained(recipe, Path(folder, str(number)), changes)
            print(f"{name:<30}{results[name]['steps'][-1]['loss']:.6f}", flush=True)
            file.write_text(json.dumps(results, indent=1))


def compare(before: Path, after: Path) -> int:
    """Print what differs; the number of runs that do. A weight counts where both checkpoints have it: newer ones hold
    only what is trained."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    parts_of = {name: _different(one, new.get(name, {})) for name, one in old.items()}
    different = [name for name, parts in parts_of.items() if parts]
    for name in different:
        parts = parts_of[name]
        print(f"{name}: {', '.join(parts)} differ" if name in new else f"{name}: was not run again")
    print(f"{len(old) - len(different)} of {len(old)} runs are equal bit for bit")
    return len(different)


def _different(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    parts = [part for part in ("steps", "evaluations") if old[part] != new.get(part)]
    both = old["weights"].keys() & new.get("weights", {}).keys()
    same = bool(both) and all(old["weights"][name] == new["weights"][name] for name in both)
    return parts if same else [*parts, "weights"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("record", "compare"))
    parser.add_argument("files", type=Path, nargs="+")
    given = parser.parse_args()
    if given.command == "compare" and len(given.files) == 2:
        sys.exit(1 if compare(*given.files) else 0)
    if given.command == "record" and len(given.files) == 1:
        record(given.files[0])
        return
    parser.error("record takes one file, compare two")


if __name__ == "__main__":
    main()
