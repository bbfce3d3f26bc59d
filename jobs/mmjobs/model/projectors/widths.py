"""What a projector stands between: the sizes of the two models that it joins."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Widths:
    """V wide on one side, D on the other; the encoder gives a square grid of patches, perhaps a class token."""

    vision: int
    language: int
    side: int
    """Patches along each side of the grid."""
    class_token: bool = False
    queries: int | None = None
    """How many a perceiver learns."""
    vision_heads: int = 1

    @property
    def patches(self) -> int:
        """What the encoder gives of one image."""
        return self.side**2 + self.class_token
