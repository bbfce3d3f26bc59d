"""The rows that tasks make, and the files of images that have none."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from mmjobs.data.formats import shapes
from mmjobs.inference.made import keep, path_of


def test_a_drawing_gets_a_file(tmp_path: Path) -> None:
    example = shapes.example(7)
    keep(example, tmp_path / "images")
    (picture,) = example.images
    assert path_of(picture) == f"images/{picture.file_name}"
    with Image.open(tmp_path / path_of(picture)) as written:
        assert written.tobytes() == picture.open().tobytes()
