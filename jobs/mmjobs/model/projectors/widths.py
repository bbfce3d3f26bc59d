"""The sizes of the two models that a projector connects."""

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
    """The number of queries that a perceiver learns."""
    vision_heads: int = 1

    @property
    def patches(self) -> int:
        """The number of features that the encoder gives for one image."""
        return self.side**2 + self.class_token
