"""The rows of preference.py on a GPU: 8 B weights in bf16, each trainer at the better of two sets of options.

    python -m benchmarks.preference        # on a machine with a GPU; about seven minutes with TRL, four without

Weights are random and drawn on the device: speed and memory do not ask what they say. Both trainers would not fit side
by side, so each turn (A B B A) is a process of its own, which warms up for three steps and is then timed over the next
ones, with the device synchronised at both ends; its row is printed when it ends. Ours is then profiled for three steps:
its kernels by time, and how long the device waited, are written into a folder. Useful arithmetic is counted once, for
ours (`mmjobs.metrics.mfu`), and the peer does the same work: its share of the peak is what its own speed makes of it.
`--toy` runs the same rows with few weights; without TRL, ours are run alone; with `--liger` ours has Liger's layers.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contender import Contender, Died, Trainer
from benchmarks.preference_trainers import ours, theirs, write

WARM, TIMED, PROFILED, ROWS = 3, 10, 3, 512
FEW, FEW_ROWS = 2, 72  # timed steps and rows of a toy
AGREE = 2e-2
LARGE: dict[str, Any] = {
    "vision": {"random": {"width": 1024, "layers": 24, "heads": 16, "image_size": 336, "patch": 14}},
    "language": {"random": {"width": 4096, "layers": 32, "heads": 32, "max_positions": 8192}},
}
"""CLIP-L/14 at 336 pixels, and a LLaMA of 6.4 B weights in its layers beside a vocabulary of 128,256."""
TOY: dict[str, Any] = {
    "vision": {"random": {"width": 32, "layers": 2, "heads": 2, "image_size": 56, "patch": 14}},
    "language": {"random": {"width": 64, "layers": 2, "heads": 2, "max_positions": 2048}},
}


@dataclass(frozen=True)
class Regime:
    """What both trainers learn, and the options of each that are tried."""

    both: dict[str, Any]
    ours: list[dict[str, Any]]
    theirs: list[dict[str, Any]]


OURS = [{"pairs": pairs, "tokens": 1024 * pairs} for pairs in (8, 16)]
REGIMES = {
    "LoRA, rank 64": Regime({"lora": True, "rank": 64}, OURS, [{"pairs": 8}, {"pairs": 4}]),
    "full, bf16 states": Regime({}, OURS, [{"pairs": 8, "checkpointing": True}, {"pairs": 4, "checkpointing": True}]),
}
"""TRL's are those that a first look found fastest; LoRA with 16 pairs and full without checkpointing do not fit."""
HEAD = """\
| | trainer | options | pairs/s | share of the peak | GB |
|---|---|---|---|---|---|"""
GB = 1e9


@dataclass(frozen=True)
class Turn:
    """What one process said."""

    rate: float
    peak: float
    mfu: float | None
    first_loss: float
    pairs: int


def has_peer() -> bool:
    """Whether TRL is installed here."""
    return importlib.util.find_spec("trl") is not None


def compare(folder: Path, profiles: Path, toy: bool, only: list[str], liger: bool = False) -> None:
    """Print a row for each turn of each regime, and how the best of both compare."""
    data = folder / "data"
    data.mkdir()
    with _drawn_on_the_device():
        write(data, 384 if toy else 128_256, TOY if toy else LARGE, FEW_ROWS if toy else ROWS, half=not toy)
    alone = not has_peer()
    if alone:
        print("TRL is not installed here: ours alone.\n")
    print(HEAD, flush=True)
    for name, regime in REGIMES.items():
        if not any(word in name for word in only):
            continue
        best: dict[str, Turn] = {}
        for number, pair in enumerate(zip(regime.ours, regime.theirs, strict=True)):
            mine = (ours, pair[0] | {"liger": liger})
            turns = [mine] if alone else [mine, (theirs, pair[1])]
            for trainer, options in turns[:: -1 if number % 2 else 1]:
                if (said := _row(folder, profiles, name, trainer, regime.both | options, data, toy)) is not None:
                    known = best.get(trainer.__name__)
                    best[trainer.__name__] = said if known is None or said.rate > known.rate else known
        if len(best) == 2:
            _judge(name, best["ours"], best["theirs"])


def _row(
    folder: Path, profiles: Path, regime: str, trainer: Trainer, options: dict[str, Any], data: Path, toy: bool
) -> Turn | None:
    """Run one process and print its row; None where it does not fit."""
    shown = ", ".join(
        f"{key} {options[key]}" for key in ("pairs", "tokens", "checkpointing", "liger") if options.get(key)
    )
    start = f"| {regime} | {'mmlaunch' if trainer is ours else 'TRL'} | {shown} |"
    own = folder / f"{trainer.__name__}-{len(list(folder.iterdir()))}"
    try:
        said = _turn(own, trainer, options, data, toy)
    except Died as words:
        if "out of memory" not in str(words):
            raise
        print(f"{start} does not fit | | |", flush=True)
        return None
    share = f"{said.mfu:.0%}" if said.mfu else "not known" if trainer is ours else ""
    print(f"{start} {said.rate:.2f} | {share} | {said.peak / GB:.1f} |", flush=True)
    for table in (own / "run" / "profiles").rglob("*.txt"):
        profiles.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(table, profiles / f"{'lora' if 'lora' in options else 'full'}-{options['pairs']}.txt")
    return said


def _turn(own: Path, trainer: Trainer, options: dict[str, Any], data: Path, toy: bool) -> Turn:
    """One process: warmed up, timed, profiled, ended."""
    timed = FEW if toy else TIMED
    last = WARM + timed + PROFILED
    options = options | {"gpu": not toy, "steps": last + 1, "workers": 1 if toy else 4, "profile": [last - 2, last]}
    work = Contender(trainer, data, own, options)
    work.turn(WARM - 1)
    said = work.turn(timed)
    if trainer is ours:
        seconds = work.turn(PROFILED - 1)["seconds"]
        work.turn(2)  # the trace is written before the last of them is over
    work.end()
    for table in (own / "run" / "profiles").rglob("*.txt"):
        clock = f"the first {PROFILED - 1} of these {PROFILED} steps took {seconds:.3f} s of the clock"
        what = f"{clock}; what is missing in the device's total it waited."
        table.write_text(f"{what}\n\n{table.read_text()}")
    rate = timed * options["pairs"] / said["seconds"]
    return Turn(rate, said["peak"], said.get("mfu"), work.first["losses"][0], options["pairs"])


def _judge(name: str, mine: Turn, other: Turn) -> None:
    """How the best of ours compares to the best of theirs, which computed the same."""
    if mine.pairs == other.pairs:
        same = abs(mine.first_loss - other.first_loss) < AGREE * max(1.0, other.first_loss)
        assert same, f"first losses {mine.first_loss} and {other.first_loss} are not the same"
    share = f"{mine.mfu / mine.rate * other.rate:.0%}" if mine.mfu else ""
    ratios = f"{mine.rate / other.rate:.2f} x as fast | TRL: {share or 'not known'} | {mine.peak / other.peak:.2f} x |"
    print(f"| {name} | best of both | | {ratios}", flush=True)


@contextmanager
def _drawn_on_the_device() -> Iterator[None]:
    """In this context large normal numbers are drawn by the GPU, if there is one: half the time for 8 B weights."""
    import torch

    drawn: Any = torch.Tensor.normal_

    def normal(self: torch.Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> torch.Tensor:
        if generator is not None or self.is_cuda or self.numel() < 1_000_000:
            return drawn(self, mean, std, generator=generator)  # type: ignore[no-any-return]  # the method of torch
        there = torch.empty(self.shape, device="cuda", dtype=torch.float32)
        with torch.no_grad():
            return self.copy_(drawn(there, mean, std))

    replaced: Any = torch.Tensor
    if torch.cuda.is_available():
        replaced.normal_ = normal
    try:
        yield
    finally:
        replaced.normal_ = drawn
