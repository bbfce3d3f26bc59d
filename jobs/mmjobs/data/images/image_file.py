"""Pictures: images in files and in bytes, opened when they are needed, always upright and in RGB with 8 bits."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from mmjobs.data.example import BadPicture

_METADATA: Final = 64 * 2**20
"""Bytes of EXIF, text and colour profile that a PNG may carry: Pillow's own limit of 1 MB refuses real photographs."""
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _METADATA

KINDS: Final = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "QOI")
"""Kinds of files that data sets hold; none that Pillow opens with another program (EPS) or by guessing (TGA, PCX)."""

DAMAGE: Final = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, ArithmeticError, TypeError, AttributeError,
    RuntimeError, MemoryError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow's decoders raise on bytes that are not what their header says."""

UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""The operation that undoes each EXIF orientation; from 5 on, width and height are exchanged."""


@dataclass(frozen=True)
class FilePicture:
    """An image file. Two are equal when their paths are, and the disk is not asked for that."""

    path: str
    """As it stands in the row where it is absolute, below the folder of images otherwise."""
    root: str | None = field(default=None, compare=False)
    """The folder that the file has to stay in, whatever `..` and links say."""
    right: str = field(default="", compare=False)
    """What would be right, where there is no such file."""

    @classmethod
    def at(cls, name: str, folder: str | os.PathLike[str], fenced: bool = True, right: str = "") -> FilePicture:
        """`name` below `folder`, which it may leave only by an absolute path and where nothing is `fenced`."""
        root = None if Path(name).is_absolute() and not fenced else os.fspath(folder)
        return cls(os.path.normpath(os.path.join(folder, name)), root, right)  # noqa: PTH118  names may hold anything

    @property
    def identity(self) -> str:
        return self.path

    @property
    def file_name(self) -> str:
        return Path(self.path).name

    def read(self) -> bytes:
        with self._bytes() as stream:
            try:
                return stream.read()
            except OSError as error:
                raise BadPicture(f"{self.path}: cannot be read: {_reason(error)}") from None

    def open(self, max_side: int | None = None) -> Image.Image:
        with self._bytes() as stream:
            return _decoded(stream, self.path, max_side)

    def size(self, max_side: int | None = None) -> tuple[int, int]:
        with self._bytes() as stream:
            return _measured(stream, self.path, max_side)

    @contextmanager
    def _bytes(self) -> Iterator[BinaryIO]:
        try:
            real = os.path.realpath(self.path)
            if self.root is not None and not Path(real).is_relative_to(os.path.realpath(self.root)):
                raise BadPicture(f"{self.path}: leaves the folder of images, {self.root}; move it or its data there")
            found = Path(real).stat()
            if not stat.S_ISREG(found.st_mode):
                raise BadPicture(f"{self.path}: is not a file")
            if not found.st_size:
                raise BadPicture(f"{self.path}: is empty (0 bytes)")
            stream = Path(real).open("rb")  # noqa: SIM115  closed below, outside of this `except`
        except FileNotFoundError:
            raise BadPicture(f"{self.path}: no such file{self.right and f'; {self.right}'}") from None
        except (OSError, ValueError) as error:
            raise BadPicture(f"{self.path}: cannot be read: {_reason(error)}") from None
        with stream:
            yield stream


@dataclass(frozen=True, eq=False)
class BytesPicture:
    """An image in memory. Two are equal when their bytes are, whatever they are called."""

    data: bytes = field(repr=False)
    name: str
    """What errors call it: "image 2 of the row"."""

    @classmethod
    def of_base64(cls, text: str, name: str) -> BytesPicture:
        """From base64, bare or behind `data:image/png;base64,`; raises `BadPicture`."""
        head, comma, tail = text.partition(",")
        if text.startswith("data:") and not (comma and head.endswith(";base64")):
            raise BadPicture(f"{name}: begins with data:, and not with data:image/...;base64,")
        try:
            bare = "".join((tail if text.startswith("data:") else text).split())
            return cls(base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True), name)
        except (binascii.Error, ValueError) as error:
            raise BadPicture(f"{name}: is not base64: {_reason(error)}") from None

    @cached_property
    def digest(self) -> bytes:
        """A digest of the content in 16 bytes, for comparisons."""
        return hashlib.blake2b(self.data, digest_size=16).digest()

    @property
    def identity(self) -> str:
        return self.digest.hex()

    @property
    def file_name(self) -> str:
        """What a file of it is called: the same content has the same name. Raises `BadPicture`."""
        try:
            kind = (Image.open(self._stream()).format or "png").lower()
        except OSError as error:
            raise BadPicture(f"{self.name}: cannot be read: {_reason(error)}") from None
        return f"{self.identity}.{'jpg' if kind == 'jpeg' else kind}"

    def read(self) -> bytes:
        return self._stream().read()

    def open(self, max_side: int | None = None) -> Image.Image:
        return _decoded(self._stream(), self.name, max_side)

    def size(self, max_side: int | None = None) -> tuple[int, int]:
        return _measured(self._stream(), self.name, max_side)

    def _stream(self) -> BinaryIO:
        if not self.data:
            raise BadPicture(f"{self.name}: is empty (0 bytes)")
        return io.BytesIO(self.data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BytesPicture) and self.data == other.data

    def __hash__(self) -> int:
        return hash(self.digest)


def fitted(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """The size of an image whose longer side is at most `max_side`, in its proportions; never a larger one."""
    longest = max(size)
    if max_side is None or longest <= max_side:
        return size
    width, height = (max(1, round(side * max_side / longest)) for side in size)
    return width, height


def _measured(stream: BinaryIO, name: str, max_side: int | None) -> tuple[int, int]:
    with _explained(name):
        image = _header(stream, name)
        width, height = image.size
        return fitted((height, width) if _orientation(image) >= 5 else (width, height), max_side)


def _decoded(stream: BinaryIO, name: str, max_side: int | None) -> Image.Image:
    with _explained(name):
        image = _header(stream, name)
        orientation, target = _orientation(image), fitted(image.size, max_side)
        if target != image.size:
            image.draft(None, target)  # a JPEG is decoded at 1/2, 1/4 or 1/8, never below the target
        image.load()
        if image.format == "TIFF":
            target = fitted(image.size, max_side)  # Pillow has turned it
        plain = _rgb(image)
        if plain.size != target:
            plain = plain.resize(target, Image.Resampling.BICUBIC, reducing_gap=3.0)
        plain = plain.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else plain
        plain.info.clear()  # no orientation is left
        return plain


def _header(stream: BinaryIO, name: str) -> Image.Image:
    """Read the header; Pillow's limit on pixels, of which it only warns, is an error here."""
    Image.init()  # all kinds are known from here on; it does nothing the second time
    try:
        return Image.open(stream, formats=[kind for kind in KINDS if kind in Image.OPEN])
    except UnidentifiedImageError:
        raise BadPicture(f"{name}: is not an image, or of a kind that is not read ({', '.join(KINDS)} are)") from None


def _orientation(image: Image.Image) -> int:
    """1 to 8, from the header alone; what cannot be read is upright."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself, size included
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1  # Pillow would decode all pixels to look behind them
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        return 1
    return value if value in UPRIGHT else 1


def _rgb(image: Image.Image) -> Image.Image:
    """RGB with 8 bits, as transformers and LLaVA read a file: transparency is dropped, what is above 255 is white."""
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        raise ValueError("has pixels that are not numbers")
    return image.convert("RGB")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Every error of a decoder becomes `BadPicture`; its warnings are ignored, except for decompression bombs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS or 0
        raise BadPicture(f"{name}: has more than {limit:,} pixels; reduce it or remove the row") from None
    except DAMAGE as error:
        if "MAX_TEXT" in str(error):
            what = f"has more than {_METADATA >> 20} MB of metadata (EXIF, text or a colour profile)"
            raise BadPicture(f"{name}: {what}; save it without them") from None
        raise BadPicture(f"{name}: is damaged: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text or type(error).__name__).splitlines()[0]
