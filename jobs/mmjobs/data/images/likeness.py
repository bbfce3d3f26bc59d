"""Images that look alike: a hash of their gradients, which survives another size and another encoding."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np
from PIL import Image

from mmjobs.data.example import Picture

SIDE = 8
BITS = 2 * SIDE * SIDE


def content(picture: Picture) -> bytes:
    """A digest of the bytes of an image's file, whatever it is called; raises `BadPicture`."""
    import hashlib

    return hashlib.blake2b(picture.read(), digest_size=16).digest()


def fingerprint(picture: Picture) -> int:
    """One bit for each step to the right and each step down on a small grey image: whether it gets brighter.

    The difference hash in both directions. 0 is an image without any step: it looks like every other such one.
    """
    image = picture.open(256).convert("L")
    steps = []
    for size, axis in (((SIDE + 1, SIDE), 1), ((SIDE, SIDE + 1), 0)):
        grey = np.asarray(image.resize(size, Image.Resampling.LANCZOS), dtype=np.int16)  # [H, W]
        steps.append(np.diff(grey, axis=axis).ravel() > 0)
    return int.from_bytes(np.packbits(np.concatenate(steps)).tobytes(), "big")


class Near:
    """Fingerprints that are found again when a few bits differ.

    Of `distance` + 1 groups of bits at least one is equal when no more than `distance` bits differ, so only
    fingerprints with an equal group are compared.
    """

    def __init__(self, distance: int) -> None:
        self.distance = distance
        edges = [BITS * number // (distance + 1) for number in range(distance + 2)]
        self.groups = [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]
        self.places: list[defaultdict[int, list[int]]] = [defaultdict(list) for _ in self.groups]

    def add(self, fingerprint: int) -> None:
        if fingerprint and self.nearest(fingerprint) != 0:
            for (low, mask), group in zip(self.groups, self.places, strict=True):
                group[fingerprint >> low & mask].append(fingerprint)

    def nearest(self, fingerprint: int) -> int | None:
        """How many bits differ from the nearest one; None where it is too far, or the image has no steps."""
        if not fingerprint:
            return None
        near = [
            (fingerprint ^ other).bit_count()
            for (low, mask), group in zip(self.groups, self.places, strict=True)
            for other in group.get(fingerprint >> low & mask, ())
        ]
        best = min(near, default=self.distance + 1)
        return best if best <= self.distance else None
