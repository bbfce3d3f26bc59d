"""Tiles and pixels: InternVL's own counts, and the very pixels of transformers' processors."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from mmjobs.data.images.preprocess import Squares
from mmjobs.data.images.tiling import grid, squares, tiles
from mmlaunch.recipe.model import Tiling

DYNAMIC = Tiling(kind="dynamic")
MEAN, SPREAD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


@pytest.mark.parametrize(
    ("size", "shape", "tokens"),
    [
        ((800, 600), (4, 3), 3328), ((1920, 1080), (4, 2), 2304), ((1024, 1024), (3, 3), 2560),
        ((500, 2000), (1, 4), 1280), ((448, 448), (1, 1), 256), ((64, 48), (4, 3), 3328), ((700, 600), (4, 3), 3328),
    ],
)  # fmt: skip
def test_counts_are_internvls(size: tuple[int, int], shape: tuple[int, int], tokens: int) -> None:
    assert grid(size, DYNAMIC, 448) == shape and tiles(size, DYNAMIC, 448) * 256 == tokens


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 12), st.booleans())
def test_every_shape_is_within_its_budget(width: int, height: int, most: int, upscale: bool) -> None:
    tiling = Tiling(kind="dynamic", max_tiles=most, upscale=upscale)
    across, down = grid((width, height), tiling, 448)
    assert 1 <= across * down <= most
    if not upscale:
        assert (across == 1 or across * 448 <= width) and (down == 1 or down * 448 <= height)
    near = abs(width / height - across / down)
    others = [(a, d) for a in range(1, most + 1) for d in range(1, most // a + 1)]
    assert not upscale or all(near <= abs(width / height - a / d) for a, d in others)


def test_a_budget_is_shared_and_thumbnails_are_left_out_on_request() -> None:
    assert grid((800, 600), DYNAMIC, 448, budget=6) == (3, 2)
    assert tiles((800, 600), Tiling(kind="dynamic", thumbnail=False), 448) == 12
    assert tiles((64, 48), Tiling(kind="dynamic", upscale=False), 448) == 1


@pytest.mark.parametrize(
    ("images", "most", "budget", "tiles_of_all"),
    [
        (1, 12, None, 13),
        (2, 12, None, 14),
        (3, 12, None, 15),
        (4, 12, None, 4),
        (13, 12, None, 13),
        (2, 12, 4, 2),
        (2, 6, 24, 2),
    ],
)
def test_images_of_one_conversation_share_its_tiles(
    images: int, most: int, budget: int | None, tiles_of_all: int
) -> None:
    """InternVL divides its budget by the number of images; a thumbnail comes with more than one tile."""
    pixels = Squares(28, 4, 9, Tiling(kind="dynamic", max_tiles=most), MEAN, SPREAD)
    sizes = [(800, 600)] * images
    text = " and ".join(["<image>"] * images)
    assert pixels.expand(text, sizes, budget).count("<image>") == 4 * tiles_of_all
    read = pixels.read([Image.new("RGB", size) for size in sizes], budget)["pixel_values"]
    assert len(read) == tiles_of_all


def test_tiles_are_cut_row_by_row_and_the_thumbnail_comes_last() -> None:
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    left, right, whole = squares(image, Tiling(kind="dynamic", max_tiles=2), 20, (0, 0, 0))
    assert left.getcolors() == [(400, (255, 0, 0))] and right.getcolors() == [(400, (0, 0, 255))]
    assert len(whole.getcolors() or []) > 1


def noise(width: int, height: int) -> Image.Image:
    dice = random.Random(width)
    return Image.frombytes("RGB", (width, height), dice.randbytes(3 * width * height))


@pytest.mark.parametrize("size", [(50, 30), (30, 51), (28, 28), (100, 7)])
@pytest.mark.parametrize("kind", ["resize", "crop", "pad"])
def test_pixels_are_those_of_transformers(kind: Any, size: tuple[int, int]) -> None:
    image, square = noise(*size), {"height": 28, "width": 28}
    norm: dict[str, Any] = {"image_mean": list(MEAN), "image_std": list(SPREAD)}
    if kind == "pad":
        theirs: Any = LlavaImageProcessorPil(do_pad=True, size=square, do_center_crop=False, **norm)
    elif kind == "crop":
        theirs = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=square, **norm)
    else:
        theirs = CLIPImageProcessorPil(size=square, do_center_crop=False, **norm)
    ours = Squares(28, 16, 9, Tiling(kind=kind), MEAN, SPREAD)
    expected = theirs(images=[image], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours.normal(ours.read([image])["pixel_values"]), expected, atol=1e-6, rtol=0)
    shown = ours.visible(ours.read([image]))
    assert shown.shape == (1, 3, 28, 28) and 0 <= shown.min() <= shown.max() <= 1
