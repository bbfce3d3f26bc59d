"""78 billion parameters on 32 nodes, and 3 million rows: what starts, saves and restarts cost, by the real code.

    python -m benchmarks.scale > benchmarks/results/DATE-scale.md

256 pretended ranks are threads of this process: they save and resume by the code that real ranks run, with small files
in the place of large ones. Messages are the collectives of one rank, with the bytes that it sends; file-system
operations are those of all ranks, counted by Python's audit events. A rank of 3 million rows is a process of its own.
Bytes of states come from `mmlaunch estimate`. docs/scale.md says what follows.
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
from tests.jobs.checkpoint.test_background import Weights
from tests.jobs.conftest import tiny_recipe

from mmjobs.checkpoint.memory_tier import MemoryTier
from mmjobs.checkpoint.resume import resume
from mmjobs.checkpoint.save import DONE, CheckpointWriter
from mmjobs.checkpoint.train_state import TrainState
from mmjobs.data import survey_rows
from mmjobs.data.mixture import mixture
from mmjobs.data.readers.rows import Part
from mmjobs.data.sampler import packed_batches, position
from mmjobs.data.survey_rows import Survey, Usable, flat, joined
from mmjobs.engine.checkpoint_io import Files
from mmjobs.model import frozen_weights
from mmjobs.rank.context import Context
from mmjobs.rank.events import EventWriter
from mmjobs.rank.position import Position
from mmjobs.rank.ranks import Ranks
from mmjobs.rank.signals import StopRequest
from mmjobs.rank.watchdog import Watchdog
from mmjobs.train import survey_cache
from mmlaunch.estimate.memory import estimate
from mmlaunch.load.recipe import load_recipe
from mmlaunch.run.paths import RunPaths

NODES, WORLD, ROWS, FEW = 32, 256, 3_000_000, 3_000
ROOT = Path(__file__).resolve().parent.parent
SHAPES: dict[str, Any] = {
    "model_type": "internvl", "downsample_ratio": 0.5, "image_seq_length": 256,
    "text_config": {
        "model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 151674, "tie_word_embeddings": False,
    },
    "vision_config": {
        "model_type": "internvl_vision", "hidden_size": 3200, "intermediate_size": 12800, "num_hidden_layers": 45,
        "num_attention_heads": 25, "image_size": [448, 448], "patch_size": [14, 14],
    },
}  # fmt: skip
"""Of InternVL2.5-78B."""


@dataclass
class Meeting:
    """Where the pretended ranks exchange what they say."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(WORLD))
    said: list[bytes] = field(default_factory=lambda: [b""] * WORLD)
    messages: int = 0
    sent: int = 0


class Pretended(Ranks):
    """A rank that is a thread."""

    meeting: ClassVar[Meeting]

    def _exchange(self, value: Any) -> list[bytes]:
        meeting = self.meeting
        meeting.said[self.rank] = pickle.dumps(value)
        meeting.barrier.wait(600)
        said = list(meeting.said)
        if self.rank == WORLD - 1:  # one that has nothing special to do
            meeting.messages, meeting.sent = meeting.messages + 1, meeting.sent + len(said[self.rank])
        meeting.barrier.wait(600)
        return said

    def gather(self, value: Any) -> list[Any]:
        return [pickle.loads(said) for said in self._exchange(value)]

    def from_first(self, value: Any = None) -> Any:
        return pickle.loads(self._exchange(value)[0])

    def highest(self, *values: float) -> list[float]:
        return [max(column) for column in zip(*self.gather(values), strict=True)]


class Engine(Weights):
    """An engine whose files have the names and the number of DeepSpeed's at stage 3, and a few bytes each."""

    divided = True

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def snapshot(self, folder: Path) -> Files:
        names = [f"deepspeed/zero_pp_rank_{self.rank}_mp_rank_00_{kind}_states.pt" for kind in ("model", "optim")]
        files: Files = {folder / name: name.encode() * 20 for name in names}
        weights = frozen_weights.of_rank(folder / "model.safetensors", self.rank)
        return {**files, weights: safetensors.torch.save({f"weight-{self.rank}": torch.zeros(4)})}

    def load(self, folder: Path) -> None:
        for path in self.snapshot(folder):
            path.read_bytes()


OPERATIONS: Counter[str] = Counter()
_KINDS = {
    "open": "opened", "os.rename": "renamed", "os.mkdir": "folders made", "os.remove": "removed", "os.rmdir": "removed",
    "os.scandir": "folders read", "os.listdir": "folders read",
}  # fmt: skip
_watched: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event in _KINDS and arguments and str(arguments[0]).startswith(_watched[0]):
        OPERATIONS[_KINDS[event]] += 1


@contextmanager
def counted(folder: Path, what: str) -> Iterator[None]:
    """Measure what all ranks do in this context, and print a row of the table."""
    Pretended.meeting = Meeting()
    OPERATIONS.clear()
    _watched[:] = [str(folder)]
    began = time.monotonic()
    try:
        yield
    finally:
        _watched.clear()
    seconds, meeting = time.monotonic() - began, Pretended.meeting
    operations = ", ".join(f"{count:,} {kind}" for kind, count in sorted(OPERATIONS.items()))
    print(f"| {what} | {meeting.messages} | {meeting.sent:,} | {operations} | {seconds:.1f} |", flush=True)


def together(work: Callable[[int], None]) -> None:
    """Each rank does this in its thread."""
    wrong: list[BaseException] = []

    def guarded(rank: int) -> None:
        try:
            work(rank)
        except BaseException as error:  # noqa: BLE001  the others would wait for it
            wrong.append(error)
            Pretended.meeting.barrier.abort()

    threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(WORLD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise next((error for error in wrong if not isinstance(error, threading.BrokenBarrierError)), wrong[0])


def checkpoints(folder: Path) -> None:
    """A save, a save in memory, and the two ways to resume, by 256 ranks."""
    run, memory = RunPaths(folder / "run"), folder / "memory"
    run.attempt(1).logs.mkdir(parents=True)
    memory.mkdir()
    recipe = tiny_recipe(checkpoint={"memory_every": 1, "background": False})
    leaders = tuple(rank - rank % (WORLD // NODES) for rank in range(WORLD))
    for node in range(NODES):
        RunPaths(memory / f"node{node}").checkpoints.mkdir(parents=True)
    contexts = [
        Context(recipe, run, Pretended(rank, WORLD, Watchdog(run, Position())), EventWriter(run, 1, rank == 0),
                Position(), StopRequest())
        for rank in range(WORLD)
    ]  # fmt: skip
    tiers = [
        MemoryTier(one, RunPaths(memory / f"node{rank // (WORLD // NODES)}"), leaders)
        for rank, one in enumerate(contexts)
    ]
    engines = [{"model": Engine(rank)} for rank in range(WORLD)]
    writers = [
        CheckpointWriter(*both, (), tier) for both, tier in zip(zip(contexts, engines, strict=True), tiers, strict=True)
    ]
    run.checkpoints.mkdir()

    def save(rank: int) -> None:
        assert writers[rank].save(TrainState(step=1), wait=True) and writers[rank].writing == DONE

    def goes_on(step: int) -> Callable[[int], None]:
        def work(rank: int) -> None:
            assert resume(contexts[rank], engines[rank], tiers[rank]).step == step

        return work

    print("| what | messages | bytes a rank sends | file-system operations of all ranks | s here |")
    print("|---|---|---|---|---|")
    with counted(folder, "save to the disk"):
        together(save)
    with counted(folder, "resume from the disk"):
        together(goes_on(1))
    with counted(folder, "save in memory"):
        together(lambda rank: writers[rank].save_in_memory(TrainState(step=2)))
    with counted(folder, "resume from memory"):
        together(goes_on(2))
    manifest = run.checkpoint(1) / "MANIFEST.json"
    print(f"\nThe manifest of {WORLD} ranks has {manifest.stat().st_size:,} bytes.\n")


def private() -> int:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Private_Dirty")))


def start(path: Path) -> None:
    """What a later attempt does with its survey before the first step: on rank 0, and on another rank."""
    before, began = private(), time.monotonic()
    assert survey_cache._whole(path) is not None  # rank 0 alone
    checked = time.monotonic() - began
    survey = Survey((Part("here", []),), *survey_rows.read(path, check=False))
    mixed = mixture(survey, 0)
    recipe = tiny_recipe()
    assert (mixed.digest and mixed.std == 0.0) or mixed.std == 1.0
    longer = int((mixed.lengths(recipe.objective.requirements) > 8192).sum())
    batches = packed_batches(512, WORLD - 1, WORLD, 8192, lambda index: mixed.tokens(position(index, len(mixed), 0)))
    assert batches(0) and not longer
    print(json.dumps({"check": checked, "all": time.monotonic() - began, "private": private() - before}))


def rows(folder: Path) -> None:
    """Starts with few rows and with many."""
    row = Usable(0, 0, 600, (80, 90), ((448, 448),), b"q" * 12, b"c" * 12, (), 60, 8)
    print("| rows | file, MB | rank 0 checks it, s | until its first batch is planned, s | own bytes a row |")
    print("|---|---|---|---|---|")
    for count in (FEW, ROWS):
        path = folder / f"survey-{count}.safetensors"
        survey_rows.write(path, joined([flat([row] * 1000)] * (count // 1000)))
        command = [sys.executable, "-m", "benchmarks.scale", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        measured = json.loads(done.stdout.splitlines()[-1])
        each = f"{measured['private'] / count:.0f}" if count == ROWS else ""
        size = path.stat().st_size / 1e6
        print(f"| {count:,} | {size:.1f} | {measured['check']:.2f} | {measured['all']:.2f} | {each} |")


def states(folder: Path) -> None:
    """Bytes of what is trained, and of what is not, of 78B."""
    (folder / "config.json").write_text(json.dumps(SHAPES))
    full = [f"model.pretrained={folder}", f"resources.nodes={NODES}"]
    lora = [*full, "model.lora={rank: 64, alpha: 128}", "model.train.language=lora", "model.train.vision=frozen"]
    print("| 78B at ZeRO stage 3 | trained | frozen | a checkpoint, GB | each rank, GB | `frozen/`, once, GB |")
    print("|---|---|---|---|---|---|")
    for name, changes in (("full", full), ("LoRA, rank 64", lora)):
        made = estimate(load_recipe(ROOT / "recipes" / "mpo_internvl25_78b.yaml", changes).recipe)
        counts, size = made.counts, made.saved.checkpoint / 1e9
        of_model = f"{counts.trained / 1e9:.2f} B | {counts.frozen / 1e9:.2f} B"
        print(f"| {name} | {of_model} | {size:,.1f} | {size / WORLD:.2f} | {made.saved.frozen / 1e9:,.1f} |")


PREDICT = """\
name: answers
model:
  vision: {random: {width: 32}}
  language: {random: {width: 32}}
data: {input: {format: shapes, limit: 80000}}
objective: {method: predict, shards: 10000, window: 8, at_once: 400}
precision: fp32
resources: {nodes: 1, gpus_per_node: 0, tasks_per_node: 1, memory: 1G, time: 10m}
"""
PROGRAM = """\
#!/bin/bash
echo "$(basename "$0")" >>"$CALLS"
case "$(basename "$0") $1" in
  "sbatch --version") echo "slurm 22.05.8" ;;
  sbatch*) wc -l <"$CALLS" ;;
  scontrol*) echo "MaxArraySize = 1001" ;;
esac
"""


def slurm(folder: Path) -> None:
    """How often Slurm's programs are called for 10,000 tasks; here they only count."""
    programs, calls, recipe = folder / "bin", folder / "calls", folder / "answers.yaml"
    programs.mkdir()
    recipe.write_text(PREDICT)
    for name in ("sbatch", "squeue", "sacct", "scontrol", "sinfo"):
        (programs / name).write_text(PROGRAM)
        (programs / name).chmod(0o755)
    own = {"CALLS": str(calls), "MMLAUNCH_RUNS": str(folder / "runs"), "PATH": f"{programs}:{os.environ['PATH']}"}
    print("| 10,000 tasks | calls of Slurm's programs | s |\n|---|---|---|")
    for words in (["submit", str(recipe), "--cluster", "slurm"], ["status", "answers"]):
        calls.write_text("")
        began = time.monotonic()
        command = [sys.executable, "-m", "mmlaunch", *words]
        subprocess.run(command, env={**os.environ, **own}, stdout=subprocess.DEVNULL, check=True)
        seconds, counts = time.monotonic() - began, Counter(calls.read_text().split())
        shown = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        print(f"| `mmlaunch {words[0]}` | {shown} | {seconds:.1f} |", flush=True)


def main() -> None:
    sys.addaudithook(_audit)
    print(f"# 256 ranks and 3 million rows, {date.today()}\n")
    print(f"`python -m benchmarks.scale`, Python {platform.python_version()}, {os.cpu_count()} cores\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints(folder / "ranks")
        rows(folder)
        print()
        states(folder)
        print()
        slurm(folder)


if __name__ == "__main__":
    start(Path(sys.argv[1])) if sys.argv[1:] else main()
