"""The images of the generated samples, as files in the run directory: the report shows them beside the answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from mmjobs.metrics.tensorboard import Sample

EDGE = 256
"""The most pixels of a side."""


def save(folder: Path, samples: Sequence[Sample]) -> list[list[str]]:
    """Write them; returns the names of the files of each sample. The same examples are sampled each time, so each time
    they replace the files of the time before. Where the disk is full, a sample has no images."""
    names: list[list[str]] = []
    for number, sample in enumerate(samples):
        names.append([])
        for place, pixels in enumerate(sample.pixels):
            name = f"{number}-{place}.png"
            try:
                folder.mkdir(exist_ok=True)
                picture = Image.fromarray(pixels.mul(255).to(torch.uint8).permute(1, 2, 0).cpu().numpy())  # [C, H, W]
                picture.thumbnail((EDGE, EDGE))
                picture.save(folder / name)
            except OSError:
                continue
            names[-1].append(name)
    return names
