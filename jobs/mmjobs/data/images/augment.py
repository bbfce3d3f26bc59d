"""Augmentation: changes of an image before the model reads it, drawn from seeds alone."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable

from PIL import Image

QUALITIES = (75, 100)
AREAS = (0.01, 0.2)
RATIOS = (3 / 4, 4 / 3)
_TRIES = 10


def jpeg(*seed: object) -> Callable[[Image.Image], Image.Image]:
    """Encode each image again as a JPEG of a random quality (InternVL's `data_augment`)."""
    dice = _dice(seed)

    def again(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=dice.randint(*QUALITIES))
        return Image.open(buffer).convert("RGB")

    return again


def crop(*seed: object) -> Callable[[Image.Image], Image.Image]:
    """Enlarge a random crop of 1 to 20 % of each image to the size of the whole (mDPO's corrupted image)."""
    dice = _dice(seed)

    def piece(image: Image.Image) -> Image.Image:
        width, height = image.size
        for _ in range(_TRIES):
            area = width * height * dice.uniform(*AREAS)
            ratio = math.exp(dice.uniform(*map(math.log, RATIOS)))
            across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < across <= width and 0 < down <= height:
                break
        else:  # a strip: as wide or high as it is
            across, down = max(1, min(width, height) // 3), max(1, min(width, height) // 3)
        left, top = dice.randint(0, width - across), dice.randint(0, height - down)
        box = (left, top, left + across, top + down)
        return image.resize((width, height), Image.Resampling.BICUBIC, box=box)

    return piece


def _dice(seed: tuple[object, ...]) -> random.Random:
    return random.Random("/".join(map(str, seed)))
