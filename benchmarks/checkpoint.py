"""What a checkpoint costs, and whether it can be trusted: stall, size, validation, and damage of all kinds.

    python -m benchmarks.checkpoint > benchmarks/results/DATE-checkpoint.md

Two ranks on this machine's CPU train a model of random weights and save every third step, once with the training
waiting for the files and once beside it. The damage is done to a checkpoint of two ranks at ZeRO stage 3.
"""

from __future__ import annotations

import os
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.contender import Meter
from tests.jobs.conftest import Job, tiny_recipe

from mmlaunch.run import manifest
from mmlaunch.run.paths import RunPaths

STAGES = (0, 2, 3)
MODEL: dict[str, Any] = {
    "model__language": {"random": {"width": 384, "layers": 10, "heads": 6, "max_positions": 128}},
    "batch__micro": 4, "steps": 10, "checkpoint__every": "3 steps",
    "data__eval": {"format": "shapes", "skip": 1000, "limit": 2}, "evaluate__samples": 0,
}  # fmt: skip
LORA: dict[str, Any] = {
    "model__train": {"vision": "frozen", "projector": "full", "language": "lora"},
    "model__lora": {"rank": 8, "alpha": 16},
}
SHARDS, SHARD = 64, 16 * 2**20
PLACES = 200
Damage = tuple[str, Callable[[], object]]


def stalls(folder: Path, stage: int, background: bool) -> tuple[float, float, float, int]:
    """Medians of the stall, the seconds until it was whole and the seconds of a step; the bytes."""
    job = Job(RunPaths(folder / f"stage-{stage}-{background}"))
    job.paths.root.mkdir()
    recipe = tiny_recipe(deepspeed__stage=stage, checkpoint__background=background, **MODEL)
    assert job.run(recipe, 2) == [0, 0], job.log()
    saved = job.events("checkpoint")[:-1]  # the last one is always waited for
    times = [event["time"] for event in job.events("step")]
    steps = [later - earlier for earlier, later in pairwise(times)]
    shutil.rmtree(job.paths.root)
    stall, seconds = (statistics.median(event[name] for event in saved) for name in ("stall", "seconds"))
    return stall, seconds, statistics.median(steps), saved[-1]["bytes"]


def adapters(folder: Path, stage: int) -> tuple[int, int, int]:
    """Bytes of a checkpoint of LoRA, of what it trains with its optimiser, and of the frozen weights, once in a run."""
    job = Job(RunPaths(folder / f"lora-{stage}"))
    job.paths.root.mkdir()
    recipe = tiny_recipe(deepspeed__stage=stage, **LORA, **MODEL)
    assert job.run(recipe, 2) == [0, 0], job.log()
    (ready,) = job.events("ready")
    trained = sum(part["trainable"] for part in ready["parameters"].values())
    state = trained * (4 + 4 + 4 + (4 if stage else 0))  # weight, two moments, and ZeRO's own copy of the weight
    kept = sum(path.stat().st_size for path in job.paths.frozen.rglob("*") if path.is_file())
    saved = int(job.events("checkpoint")[-1]["bytes"])
    shutil.rmtree(job.paths.root)
    return saved, state, kept


def measure_memory() -> None:
    """In a rank, called before anything else: note for each save the most memory beyond what there was before."""
    from mmjobs.checkpoint.save import CheckpointWriter

    replaced: Any = CheckpointWriter
    save, meter = replaced.save, Meter()

    def measured(self: Any, *arguments: Any, **named: Any) -> Any:
        meter.anew()
        before = meter.held()
        result = save(self, *arguments, **named)
        with Path(os.environ["PEAKS"]).open("a") as file:
            print(meter.peak() - before, file=file)
        return result

    replaced.save = measured


def memory(folder: Path, stage: int, **training: Any) -> tuple[float, float]:
    """Bytes beyond what a rank holds that a save takes at most, and those of its share of a checkpoint.

    Training waits for the files, so that only the save is seen. The share: of two ranks, or all of it at stage 0.
    """
    job = Job(RunPaths(folder / f"memory-{stage}-{bool(training)}"), prepare=measure_memory)
    job.paths.root.mkdir()
    recipe = tiny_recipe(deepspeed__stage=stage, checkpoint__background=False, **{**MODEL, **training})
    assert job.run(recipe, 2, PEAKS=str(folder / "peaks-{rank}")) == [0, 0], job.log()
    peaks = [max(map(int, (folder / f"peaks-{rank}").read_text().split()[1:])) for rank in range(2)]  # caches are warm
    size = int(job.events("checkpoint")[-1]["bytes"])
    shutil.rmtree(job.paths.root)
    for rank in range(2):
        (folder / f"peaks-{rank}").unlink()
    return max(peaks), size / (2 if stage else 1)


def validation(folder: Path) -> float:
    """Seconds to validate a checkpoint of many shards."""
    staging = manifest.staging(folder, 1)
    staging.mkdir(parents=True)
    for number in range(SHARDS):
        (staging / f"shard-{number}.bin").write_bytes(random.randbytes(SHARD))
    manifest.seal(staging, folder / "step-1", 1, SHARDS)
    started = time.monotonic()
    manifest.validate(folder / "step-1")
    seconds = time.monotonic() - started
    shutil.rmtree(folder)
    return seconds


def corpus(folder: Path, chance: random.Random) -> Iterator[Damage]:
    """Every kind of damage, one at a time, to a checkpoint that is made whole again in between."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(PLACES):
        path = chance.choice(files)
        size = chance.randrange(path.stat().st_size)
        yield "cut off somewhere", partial(os.truncate, path, size)
    for path in files:
        yield "missing", path.unlink
        yield "empty", partial(os.truncate, path, 0)
        other = chance.choice(
            [one for one in files if one.read_bytes() != path.read_bytes()]
        )  # some ranks save the same
        yield "in place of another", partial(shutil.copy, other, path)
    for _ in range(PLACES):
        path = chance.choice(files)
        # Not the line feed at the end of the manifest, which says nothing.
        place, bit = chance.randrange(path.stat().st_size - 1), chance.randrange(8)
        yield "one bit flipped", partial(flip, path, place, bit)


def flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (value,) = file.read(1)
        file.seek(place)
        file.write(bytes([value ^ 1 << bit]))


def rejected(folder: Path) -> bool:
    try:
        manifest.validate(folder)
    except manifest.InvalidCheckpoint:
        return True
    return False


def judge(folder: Path) -> tuple[dict[str, list[bool]], int]:
    """For each kind of damage, whether each one was found; and how often the whole checkpoint was rejected."""
    job = Job(RunPaths(folder / "run"))
    job.paths.root.mkdir()
    assert job.run(tiny_recipe(deepspeed__stage=3, steps=2), 2) == [0, 0], job.log()
    good, kept = job.paths.checkpoint(2), folder / "kept"
    shutil.copytree(good, kept)
    found: dict[str, list[bool]] = {}
    wrong = int(rejected(good))
    for kind, damage in corpus(good, random.Random(1)):
        damage()
        found.setdefault(kind, []).append(rejected(good))
        shutil.rmtree(good)
        shutil.copytree(kept, good)
        wrong += rejected(good)
    return found, wrong


def main() -> None:
    print(f"# Checkpoints, {date.today()}\n")
    print(
        f"`python -m benchmarks.checkpoint`, Python {platform.python_version()}, {os.cpu_count()} cores, 2 ranks, CPU\n"
    )
    with tempfile.TemporaryDirectory() as name:
        print("| ZeRO stage | MB | saving | s training stood still | s until it was whole | s of a step |")
        print("|---|---|---|---|---|---|")
        for stage in STAGES:
            for background in (False, True):
                stall, seconds, step, size = stalls(Path(name), stage, background)
                how = "beside the training" if background else "training waits"
                print(f"| {stage} | {size / 1e6:.0f} | {how} | {stall:.2f} | {seconds:.2f} | {step:.2f} |", flush=True)
        print("\nMedians of three saves. The bytes are in memory after the stall; the rest is beside the training.\n")
        print("| LoRA, ZeRO stage | MB of a checkpoint | x what is trained | MB of frozen weights, once |")
        print("|---|---|---|---|")
        for stage in STAGES:
            saved, state, kept = adapters(Path(name), stage)
            print(f"| {stage} | {saved / 1e6:.1f} | {saved / state:.2f} | {kept / 1e6:.1f} |", flush=True)
        print()
        print(
            "| trained, ZeRO stage | MB of a rank's share | MB more at most while it is saved | x |\n|---|---|---|---|"
        )
        for kind, training in (("full", {}), ("LoRA", LORA)):
            for stage in STAGES:
                peak, share = memory(Path(name), stage, **training)
                print(f"| {kind}, {stage} | {share / 1e6:.0f} | {peak / 1e6:.0f} | {peak / share:.2f} |", flush=True)
        print()
        seconds = validation(Path(name) / "shards")
        print(f"Validation of {SHARDS} shards of {SHARD >> 20} MiB, hashes and all, from memory: {seconds:.2f} s\n")
        found, wrong = judge(Path(name))
        print("| damage to a checkpoint of two ranks, ZeRO stage 3 | cases | found |\n|---|---|---|")
        for kind, results in found.items():
            print(f"| {kind} | {len(results)} | {sum(results)} |")
        whole = sum(len(results) for results in found.values()) + 1
        print(f"| none | {whole} | {wrong} |")
        assert all(all(results) for results in found.values()) and not wrong


if __name__ == "__main__":
    main()
