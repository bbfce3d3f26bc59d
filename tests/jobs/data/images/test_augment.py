"""The corrupted image of mDPO is a piece of its image, drawn from seeds alone."""

from __future__ import annotations

import numpy
from PIL import Image

from mmjobs.data.images.augment import crop

SIDE = 240


def places(*seed: object) -> tuple[float, float, float, float]:
    """Where the piece begins and ends across and down, as pixels tell that say where they are."""
    across, down = numpy.meshgrid(numpy.arange(SIDE), numpy.arange(SIDE))
    image = Image.fromarray(numpy.stack([across, down, 0 * down], -1).astype(numpy.uint8))
    found = numpy.asarray(crop(*seed)(image)).astype(float)
    assert found.shape == (SIDE, SIDE, 3)
    return found[..., 0].min(), found[..., 0].max(), found[..., 1].min(), found[..., 1].max()


def test_a_piece_of_one_to_twenty_percent_is_blown_up() -> None:
    boxes = [places("spoiled", 7, row) for row in range(60)]
    for left, right, top, bottom in boxes:
        width, height = right - left + 1, bottom - top + 1
        assert 0.005 < width * height / SIDE**2 < 0.22
        assert 0.65 < width / height < 1.55
    assert max(left for left, *_ in boxes) > SIDE / 3 and max(top for _, _, top, _ in boxes) > SIDE / 3
    areas = [(right - left) * (bottom - top) / SIDE**2 for left, right, top, bottom in boxes]
    assert min(areas) < 0.05 and max(areas) > 0.15


def test_the_same_seeds_draw_the_same_piece_and_others_another() -> None:
    assert places("spoiled", 7, "row 1") == places("spoiled", 7, "row 1")
    assert places("spoiled", 7, "row 1") != places("spoiled", 7, "row 2") != places("spoiled", 8, "row 2")
