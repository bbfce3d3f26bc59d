"""Small pictures for a page: inside it where Pillow is installed, and links to the files where it is not."""

from __future__ import annotations

import base64
import io
import warnings
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

EDGE = 360
"""The most pixels of a side."""
_SMALL = 48 << 10
"""A file of at most so many bytes is taken as it is where Pillow is not installed."""
_KINDS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".gif": "gif", ".webp": "webp"}


@lru_cache(maxsize=64)
def source_of(path: str) -> str | None:
    """What an <img> of a page shows: the picture itself; None where it cannot be read."""
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError:
        return _as_it_is(Path(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                opened.draft("RGB", (EDGE, EDGE))  # a large JPEG is decoded at a part of its size
                picture = ImageOps.exif_transpose(opened)
                picture.thumbnail((EDGE, EDGE))
        return _encoded(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None


def link_to(path: str) -> str:
    """An address of the file that a browser follows, and nothing else: no text becomes a script."""
    try:
        return Path(path).as_uri()
    except ValueError:  # not absolute
        return "./" + quote(path.encode(errors="surrogateescape"))


def _encoded(picture: object) -> str:
    from PIL import Image

    assert isinstance(picture, Image.Image)
    buffer = io.BytesIO()
    few_colours = picture.mode in ("1", "L", "P", "LA", "RGBA") or picture.width * picture.height <= 64 * 64
    if few_colours and picture.mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        picture.save(buffer, "PNG", optimize=True)
        return _data("png", buffer.getvalue())
    picture.convert("RGB").save(buffer, "JPEG", quality=80, optimize=True)
    return _data("jpeg", buffer.getvalue())


def _as_it_is(path: Path) -> str | None:
    kind = _KINDS.get(path.suffix.lower())
    try:
        if kind is None or path.stat().st_size > _SMALL:
            return None
        return _data(kind, path.read_bytes())
    except (OSError, ValueError):
        return None


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
