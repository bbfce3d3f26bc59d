"""Pictures of every kind become upright RGB, and each one that cannot says which it is and why."""

from __future__ import annotations

import base64
import io
import os
import pickle
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import examples
from transformers.image_utils import load_image

from mmjobs.data.example import BadPicture
from mmjobs.data.images.image_file import BytesPicture, FilePicture, fitted

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> BytesPicture:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return BytesPicture(stream.getvalue(), "image 1 of the row")


def corners(width: int = 12, height: int = 6) -> Image.Image:
    """Red, green, blue and white quarters: every turn and mirror of it looks different."""
    image = Image.new("RGB", (width, height), WHITE)
    half, middle = width // 2, height // 2
    image.paste(RED, (0, 0, half, middle))
    image.paste(GREEN, (half, 0, width, middle))
    image.paste(BLUE, (0, middle, half, height))
    return image


def at(image: Image.Image, x: float, y: float) -> tuple[int, ...]:
    found = image.getpixel((int(x * (image.width - 1)), int(y * (image.height - 1))))
    assert isinstance(found, tuple)
    return found


def looks_like_corners(image: Image.Image) -> bool:
    places = {(0, 0): RED, (1, 0): GREEN, (0, 1): BLUE, (1, 1): WHITE}
    return all(
        max(abs(one - other) for one, other in zip(at(image, *place), colour, strict=True)) < 40
        for place, colour in places.items()
    )


UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
"""How a camera that writes this orientation stores an upright scene."""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(kind: str, orientation: int) -> None:
    scene = corners(96, 48)
    stored = scene.transpose(UNDO[orientation]) if orientation > 1 else scene
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = saved(stored, kind, exif=exif)
    opened = picture.open()
    assert opened.size == picture.size() == (96, 48) and opened.mode == "RGB"
    assert looks_like_corners(opened) and opened.getexif().get(0x0112) is None
    assert picture.open(32).size == picture.size(32) == (32, 16) and looks_like_corners(picture.open(32))


def test_orientation_that_cannot_be_read_is_upright() -> None:
    for exif in (b"Exif\0\0broken", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03"):
        picture = saved(corners(), "JPEG", exif=exif, quality=95)
        assert picture.open().size == picture.size() == (12, 6)


def test_palettes_greys_and_bits() -> None:
    assert looks_like_corners(saved(corners().convert("P")).open())
    assert looks_like_corners(saved(corners().convert("P"), "GIF").open())
    grey = saved(Image.new("L", (3, 3), 77)).open()
    assert grey.mode == "RGB" and at(grey, 0, 0) == (77, 77, 77)
    assert at(saved(Image.new("1", (3, 3), 1)).open(), 0, 0) == WHITE


def served(image: Image.Image, kind: str, **options: object) -> Image.Image:
    """What transformers shows a model of this file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return load_image(Image.open(buffer))


def same(image: Image.Image, kind: str, **options: object) -> bool:
    ours, theirs = saved(image, kind, **options).open(), served(image, kind, **options)
    return ours.mode == theirs.mode == "RGB" and ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_dropped_as_transformers_does(mode: str) -> None:
    clear = Image.new("RGBA", (4, 4), (200, 10, 10, 0))
    clear.putpixel((0, 0), (0, 0, 0, 255))
    clear.putpixel((3, 3), (0, 90, 0, 128))
    image = clear.convert("P" if mode == "PA" else mode)
    image.putalpha(clear.getchannel("A"))
    assert image.mode == mode
    assert same(image, "TIFF" if mode == "PA" else "PNG")
    if mode == "RGBA":
        assert saved(image, "PNG").open().getpixel((1, 1)) == (200, 10, 10)


def test_a_transparent_palette_entry_or_colour_keeps_its_colour() -> None:
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        assert same(palette, kind, transparency=1)
        assert saved(palette, kind, transparency=1).open().getpixel((1, 0)) == (0, 0, 255)
    assert same(corners(), "PNG", transparency=RED) and looks_like_corners(
        saved(corners(), "PNG", transparency=RED).open()
    )


def test_cmyk_is_the_colour_it_was() -> None:
    flat = Image.new("RGB", (16, 16), (200, 40, 90))
    found = at(saved(flat.convert("CMYK"), "JPEG", quality=95).open(), 0.5, 0.5)
    assert max(abs(one - other) for one, other in zip(found, (200, 40, 90), strict=True)) <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_what_transformers_makes_of_them(kind: str) -> None:
    values = np.array([[0, 100, 256, 32768, 65535]], dtype=np.uint16)
    assert same(Image.fromarray(values), kind)
    if kind == "PNG":
        assert list(saved(Image.fromarray(values), kind).open().getchannel("R").tobytes()) == [0, 100, 255, 255, 255]


def test_floats_and_long_integers_are_what_transformers_makes_of_them() -> None:
    for values in ([0.0, 0.5, 1.0], [0.0, 100.0, 300.0], [-5.0, 0.0, 5.0]):
        assert same(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    assert same(Image.fromarray(np.array([[0, 65535, -3, 2_000_000]], dtype=np.int32)), "TIFF")
    with pytest.raises(BadPicture, match="not numbers"):
        saved(Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32)), "TIFF").open()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    assert at(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options).open(), 0, 0) == RED


def test_a_file_is_opened_below_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    corners().save(tmp_path / "in" / "größe, 1.png")
    picture = FilePicture.at("in/größe, 1.png", tmp_path)
    assert picture.size() == (12, 6) and looks_like_corners(picture.open())
    assert FilePicture.at(str(tmp_path / "in" / "größe, 1.png"), tmp_path).size() == (12, 6)


def test_nothing_leaves_its_folder(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root2" / "a.png"
    for folder in (root, outside.parent):
        folder.mkdir()
    corners().save(outside)
    (root / "link.png").symlink_to(outside)
    (root / "linked").symlink_to(outside.parent)
    for name in ("../root2/a.png", str(outside), "link.png", "linked/a.png", "x/../../root2/a.png"):
        picture = FilePicture.at(name, root)
        for use in (picture.open, picture.size):
            with pytest.raises(BadPicture, match=r"leaves the folder of images"):
                use()
    assert FilePicture.at(str(outside), root, fenced=False).size() == (12, 6)
    with pytest.raises(BadPicture, match="leaves the folder"):
        FilePicture.at("../root2/a.png", root, fenced=False).open()
    (tmp_path / "alias").symlink_to(outside.parent)
    assert FilePicture.at("a.png", tmp_path / "alias").size() == (12, 6), "the folder itself may be a link"


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[[str], Path]:
    """A folder of images that cannot be used, each in its own way."""
    whole = {kind: saved(Image.effect_noise((200, 100), 60), kind).data for kind in ("JPEG", "PNG", "GIF", "WEBP")}
    for kind, data in whole.items():
        (tmp_path / f"half.{kind.lower()}").write_bytes(data[: len(data) // 2])
        (tmp_path / f"head.{kind.lower()}").write_bytes(data[:20])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<html>404 Not Found</html>")
    (tmp_path / "vector.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "print.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    return lambda name: tmp_path / name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("half.jpeg", "damaged"), ("half.png", "damaged"), ("half.gif", "damaged"), ("half.webp", "damaged|not an"),
        ("head.jpeg", "damaged|not an image"), ("head.png", "damaged|not an image"), ("head.gif", "damaged|not an"),
        ("head.webp", "damaged|not an image"), ("empty.jpg", r"empty \(0 bytes\)"), ("page.jpg", "not an image"),
        ("vector.svg", "not an image"), ("print.eps", "not an image"), ("folder.jpg", "not a file"),
        ("dangling.jpg", "no such file"), ("pipe.jpg", "not a file"), ("missing.jpg", "no such file"),
        ("nul\0.jpg", "cannot be read"), ("x" * 300 + ".jpg", "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_bad_is_named(damaged: Callable[[str], Path], name: str, why: str) -> None:
    path = damaged(name)
    with pytest.raises(BadPicture, match=why) as caught:
        FilePicture.at(name, path.parent).open()
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_bad_bytes_are_named_by_their_place() -> None:
    for data, why in ((b"", "empty"), (b"GIF89a", "not an image|damaged"), (b"\0" * 100, "not an image")):
        with pytest.raises(BadPicture, match=f"^image 2 of the row: .*({why})"):
            BytesPicture(data, "image 2 of the row").open()


def bomb(width: int, height: int) -> BytesPicture:
    """A PNG that claims so many pixels in a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(2000))) + chunk(b"IEND", b"")
    return BytesPicture(b"\x89PNG\r\n\x1a\n" + parts, "image 1 of the row")


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)])
def test_bombs_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    began = time.monotonic()
    for use in (bomb(*size).open, bomb(*size).size):
        with pytest.raises(BadPicture, match=r"more than 89,478,485 pixels"):
            use()
    assert time.monotonic() - began < 0.5


def test_the_size_needs_the_header_alone() -> None:
    for kind in ("JPEG", "PNG", "GIF", "BMP"):
        data = saved(Image.effect_noise((400, 300), 60), kind).data
        cut = BytesPicture(data[:2000], "cut")
        assert cut.size() == (400, 300)
        with pytest.raises(BadPicture, match="cut: is damaged"):
            cut.open()


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.one_of(st.none(), st.integers(1, 5000)))
def test_a_bound_keeps_the_proportions_and_never_enlarges(size: tuple[int, int], bound: int | None) -> None:
    found = fitted(size, bound)
    if bound is None or max(size) <= bound:
        assert found == size
    else:
        assert max(found) == bound
        for side, new in zip(size, found, strict=True):
            assert new == max(1, round(side * bound / max(size)))


def test_a_huge_jpeg_is_cheap_when_its_side_is_bound() -> None:
    noise = Image.effect_noise((500, 400), 60).convert("RGB").resize((5000, 4000))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = saved(noise, "JPEG", exif=exif)
    began = time.process_time()
    whole = picture.open()
    full, began = time.process_time() - began, time.process_time()
    small = picture.open(500)
    assert time.process_time() - began < full / 2
    assert whole.size == (4000, 5000) and small.size == picture.size(500) == (400, 500)
    wanted = np.asarray(whole.resize(small.size, Image.Resampling.BICUBIC), dtype=float)
    assert np.abs(wanted - np.asarray(small, dtype=float)).mean() < 6


def test_pictures_are_equal_by_path_or_by_content(tmp_path: Path) -> None:
    one, other = FilePicture.at("a.png", tmp_path), FilePicture.at(f"{tmp_path}/b/../a.png", "/elsewhere", fenced=False)
    assert one == other and hash(one) == hash(other) and one != FilePicture.at("b.png", tmp_path)
    left, right = BytesPicture(b"same", "image 1"), BytesPicture(b"same", "image 2")
    assert left == right and hash(left) == hash(right) and left.digest == right.digest
    assert left != BytesPicture(b"other", "image 1") and left != one and len({one, other, left, right}) == 2
    for picture in (one, left):
        assert pickle.loads(pickle.dumps(picture)) == picture
    assert "same" not in repr(left)


def test_base64_is_read_bare_and_with_its_kind() -> None:
    data = saved(corners()).data
    text = base64.b64encode(data).decode()
    lines = "\n".join(text[place : place + 60] for place in range(0, len(text), 60))
    for written in (text, f"data:image/png;base64,{text}", text.rstrip("="), lines):
        assert BytesPicture.of_base64(written, "image 1").data == data
    for written in ("not base64!", "data:image/png,abc", "abcde", "ü" * 8):
        with pytest.raises(BadPicture, match=r"^image 3: "):
            BytesPicture.of_base64(written, "image 3").open()


KINDS = (
    "JPEG RGB", "JPEG CMYK", "PNG P", "PNG RGBA", "GIF P", "TIFF L", "WEBP RGB", "BMP RGB", "PPM L", "AVIF RGB",
    "JPEG2000 RGB",
)  # fmt: skip
FORMS = [
    saved(Image.effect_noise((40, 30), 60).convert(mode), kind).data for kind, mode in (both.split() for both in KINDS)
]


@given(
    data=st.sampled_from(FORMS),
    hits=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=8),
    end=st.integers(0, 4000),
)
@settings(max_examples=examples(200), deadline=None)
def test_no_damage_is_anything_but_a_bad_picture(data: bytes, hits: list[tuple[int, int]], end: int) -> None:
    bad = bytearray(data)
    for place, value in hits:
        bad[place % len(bad)] = value
    picture = BytesPicture(bytes(bad[: max(1, end)]), "hit")
    try:
        opened = picture.open(64)
    except BadPicture as error:
        assert str(error).startswith("hit: ")
    else:
        assert opened.mode == "RGB" and opened.size == picture.size(64)


def with_metadata(size: int, kind: bytes) -> BytesPicture:
    """A PNG that carries so many bytes of metadata, compressed as tools write them."""
    whole, zipped = saved(corners()).data, zlib.compress(b"x" * size)
    content = {"zTXt": b"Raw profile type exif\0\0", "iCCP": b"icc\0\0", "iTXt": b"XML:com.adobe.xmp\0\1\0\0\0"}[
        kind.decode()
    ]
    body = kind + content + zipped
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return BytesPicture(whole[:33] + chunk + whole[33:], "image 1 of the row")


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_twenty_megabytes_of_metadata_are_no_damage(kind: bytes) -> None:
    assert looks_like_corners(with_metadata(20 * 2**20, kind).open())
    if kind == b"zTXt":
        with pytest.raises(
            BadPicture, match=r"image 1 of the row: has more than 64 MB of metadata .*; save it without"
        ):
            with_metadata(70 * 2**20, kind).open()
