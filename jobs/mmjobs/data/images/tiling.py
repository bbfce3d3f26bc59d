"""Tiling: how one image becomes one or more squares of the encoder's size."""

from __future__ import annotations

from functools import lru_cache

from PIL import Image

from mmlaunch.recipe.model import Tiling

Size = tuple[int, int]


def shared(tiling: Tiling, images: int, budget: int | None = None) -> int:
    """The most tiles of each image of a conversation: InternVL divides its budget by their number, at least 1 each."""
    return max(1, min(tiling.max_tiles, budget or tiling.max_tiles) // max(1, images))


def tiles(size: Size, tiling: Tiling, side: int, budget: int | None = None) -> int:
    """The number of squares that an image of this size becomes, including the thumbnail."""
    if tiling.kind != "dynamic":
        return 1
    across, down = grid(size, tiling, side, budget)
    return across * down + (tiling.thumbnail and across * down > 1)


def squares(
    image: Image.Image, tiling: Tiling, side: int, ground: tuple[int, int, int], budget: int | None = None
) -> list[Image.Image]:
    """The squares of an image; `ground` fills what padding adds."""
    if tiling.kind == "resize":
        return [_resized(image, (side, side))]
    if tiling.kind in ("crop", "encoder"):  # CLIP's own, where the encoder ships nothing else
        return [_cropped(image, side)]
    if tiling.kind == "pad":
        return [_padded(image, side, ground)]
    across, down = grid(image.size, tiling, side, budget)
    whole = _resized(image, (across * side, down * side))
    corners = [(column * side, row * side) for row in range(down) for column in range(across)]
    parts = [whole.crop((left, top, left + side, top + side)) for left, top in corners]
    return [*parts, _resized(image, (side, side))] if tiling.thumbnail and len(parts) > 1 else parts


def grid(size: Size, tiling: Tiling, side: int, budget: int | None = None) -> Size:
    """InternVL's choice of (columns, rows): the shape nearest to the image's, among shapes of at most `budget` tiles.

    Between equally near shapes the larger one wins when the image covers more than half of its pixels. The
    comparison is made on 64-bit floats, as InternVL's is: 700 x 600 is 4 x 3 there, and exact fractions would disagree.
    """
    width, height = size
    most = min(tiling.max_tiles, budget or tiling.max_tiles)
    best, nearest = (1, 1), float("inf")
    for across, down in _shapes(min(tiling.min_tiles, most), most):
        if not tiling.upscale and (across > max(1, width // side) or down > max(1, height // side)):
            continue
        distance = abs(width / height - across / down)
        if distance < nearest:
            best, nearest = (across, down), distance
        elif distance == nearest and width * height > 0.5 * side * side * across * down:
            best = (across, down)
    return best


@lru_cache
def _shapes(fewest: int, most: int) -> tuple[Size, ...]:
    """All (columns, rows) within these numbers of tiles, small ones first."""
    shapes = [(a, d) for a in range(1, most + 1) for d in range(1, most + 1) if fewest <= a * d <= most]
    return tuple(sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape)))


def _resized(image: Image.Image, size: Size) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, side: int) -> Image.Image:
    """The shorter edge becomes `side`, and the middle stays: CLIP's own way."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    stretched = int(side * long / short)
    image = _resized(image, (side, stretched) if width <= height else (stretched, side))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _padded(image: Image.Image, side: int, ground: tuple[int, int, int]) -> Image.Image:
    """The image in the middle of a square of the longer edge, and that square resized: LLaVA's way."""
    longest = max(image.size)
    width = longest
    if image.width > image.height:  # Pillow resizes across first, then down: the ground above and below need not wait
        image, width = _resized(image, (side, image.height)), side
    square = Image.new("RGB", (width, longest), ground)
    square.paste(image, ((width - image.width) // 2, (longest - image.height) // 2))
    return _resized(square, (side, side))
