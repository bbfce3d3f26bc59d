"""Augmentation: what is changed in an image before the model sees it, drawn from a seed and an index alone."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

from PIL import Image

QUALITIES = (75, 100)


def jpeg(*seed: object) -> Callable[[Image.Image], Image.Image]:
    """Encode each image again as a JPEG of a random quality (InternVL's `data_augment`)."""
    dice = random.Random("/".join(map(str, seed)))

    def again(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=dice.randint(*QUALITIES))
        return Image.open(buffer).convert("RGB")

    return again
