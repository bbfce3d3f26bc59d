"""From an opened image to the pixels that a CLIP encoder expects."""

from __future__ import annotations

import torch
from PIL import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)
SPREAD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own constants, as in its preprocessor_config.json."""


def pixels(image: Image.Image, side: int) -> torch.Tensor:
    """One square of `side` pixels, normalised: [3, side, side]. The proportions of the image are not kept."""
    square = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    values = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
    scaled = values.view(side, side, 3).permute(2, 0, 1).float() / 255
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(SPREAD).view(3, 1, 1)


def visible(normalised: torch.Tensor) -> torch.Tensor:
    """The image that a person can look at, from what `pixels` gave: [3, side, side] from 0 to 1."""
    return (normalised * torch.tensor(SPREAD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)).clamp(0, 1)
