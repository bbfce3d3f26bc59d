"""How fast images are read: JPEG bytes to the 336-pixel squares of a CLIP encoder, on one core.

    python -m benchmarks.images [--rounds 12] > benchmarks/results/DATE-images.md

`ours` is what a worker of the data loader does: open, upright, RGB, resize, tensor of bytes; the network normalises
them where it is. `bare` is a loop that decodes with Pillow and resizes to what that kind of tiling needs, and does
nothing else. `transformers` decodes and calls CLIPImageProcessorPil, whose pixels `crop` reproduces once they are
normalised; against it, and in the column of that name, that is done here too. They take turns, A B B A; each number
is the median over rounds of the ratio of two neighbours, in process CPU time, so that neither the disk nor another
program counts.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import numpy
import PIL
import torch
from PIL import Image, features
from transformers import CLIPImageProcessorPil

from mmjobs.data.images.image_file import BytesPicture
from mmjobs.data.images.preprocess import Squares
from mmjobs.data.images.tiling import grid
from mmlaunch.recipe.model import Tiling

SIDE, COUNT, GOAL = 336, 8, 0.8
SIZES = ((640, 480), (1920, 1080))
KINDS = ("resize", "pad", "crop", "dynamic")
MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def jpeg(size: tuple[int, int], seed: int) -> bytes:
    """Soft shapes with some grain: about as many bytes for each pixel as a photograph has."""
    random = numpy.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), numpy.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = random.normal(0, 6, (size[1], size[0], 1))
    pixels = (numpy.asarray(coarse) + grain).clip(0, 255).astype(numpy.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def ours(kind: str, normalised: bool = False) -> Callable[[bytes], object]:
    pixels = Squares(SIDE, 576, 0, Tiling.model_validate({"kind": kind, "max_tiles": 6}), MEAN, SPREAD)

    def read(data: bytes) -> object:
        values = pixels.read([BytesPicture(data, "image").open(pixels.max_side)])["pixel_values"]
        return pixels.normal(values) if normalised else values

    return read


def bare(kind: str) -> Callable[[bytes], object]:
    tiling = Tiling.model_validate({"kind": kind, "max_tiles": 6})

    def read(data: bytes) -> object:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return [image.resize(size, Image.Resampling.BICUBIC) for size in targets(image.size)]

    def targets(size: tuple[int, int]) -> list[tuple[int, int]]:
        if kind == "crop":
            short = min(size)
            return [(SIDE * size[0] // short, SIDE * size[1] // short)]
        if kind != "dynamic":
            return [(SIDE, SIDE)]
        across, down = grid(size, tiling, SIDE)
        return [(across * SIDE, down * SIDE), *([(SIDE, SIDE)] if across * down > 1 else [])]

    return read


def transformers() -> Callable[[bytes], object]:
    square = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square)
    return lambda data: processor(images=Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt")


def seconds(read: Callable[[bytes], object], images: list[bytes]) -> float:
    start = time.process_time()
    for data in images:
        read(data)
    return time.process_time() - start


def compared(
    first: Callable[[bytes], object], second: Callable[[bytes], object], images: list[bytes], rounds: int
) -> tuple[float, float]:
    """(images per second of the first, how many times as fast as the second it is)."""
    rates, ratios = [], []
    for number in range(rounds + 1):
        a, b, c, d = (seconds(read, images) for read in (first, second, second, first))
        if number:  # the first round warms caches
            rates.append(2 * len(images) / (a + d))
            ratios += [b / a, c / d]
    return statistics.median(rates), statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    turbo = (
        f"libjpeg-turbo {features.version_feature('libjpeg_turbo')}" if features.check("libjpeg_turbo") else "libjpeg"
    )
    print(f"# Reading images, {date.today()}\n")
    print(
        f"`python -m benchmarks.images --rounds {rounds}`, Python {platform.python_version()}, Pillow {PIL.__version__}"
    )
    print(f"({turbo}), one of {os.cpu_count()} cores; {COUNT} JPEGs of each size, quality 90, to {SIDE} pixels;")
    print(f"dynamic: at most 6 tiles and a thumbnail. The goal is {GOAL} times the bare loop.\n")
    print("| JPEG | tiling | images/s/core | ratio to bare loop | normalised too | ratio to transformers | goal |")
    print("|---|---|---|---|---|---|---|")
    for size in SIZES:
        images = [jpeg(size, seed) for seed in range(COUNT)]
        each = sum(map(len, images)) / COUNT / 1000
        for kind in KINDS:
            rate, ratio = compared(ours(kind), bare(kind), images, rounds)
            whole = compared(ours(kind, True), bare(kind), images, rounds)[1]
            other = f"{compared(ours(kind, True), transformers(), images, rounds)[1]:.2f}" if kind == "crop" else ""
            met = "met" if ratio >= GOAL else "missed"
            label = f"{size[0]} x {size[1]}, {each:.0f} kB"
            print(f"| {label} | {kind} | {rate:.0f} | {ratio:.2f} | {whole:.2f} | {other} | {met} |", flush=True)


if __name__ == "__main__":
    main()
