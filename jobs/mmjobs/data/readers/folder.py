"""The image folder of a source, and the images that a row's columns name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmjobs.data.example import BadPicture, Picture
from mmjobs.data.images.image_file import BytesPicture, FilePicture
from mmjobs.data.readers.row import Row, kind
from mmlaunch.recipe.data import Source

ENCODED: Final = re.compile(r"(/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK)[A-Za-z0-9+/\s]{50,}={0,2}\s*")
"""Base64 of the first bytes of a JPEG, PNG, GIF, WebP or TIFF, and no dot: a path to an image has one."""


@dataclass(frozen=True)
class Folder:
    """Where a source's images are."""

    path: Path
    fenced: bool
    """Whether the source names it, so that absolute paths too have to lie in it."""
    refused: bool = False
    """The source says `images: none`."""

    @classmethod
    def of(cls, source: Source, file: Path) -> Folder:
        """The folder that a source names, or the one its file is in; then absolute paths may lead anywhere."""
        if source.images == "none":
            return cls(file.parent, True, refused=True)
        if source.images is not None:
            return cls(Path(source.images).expanduser(), True)
        return cls(file if file.is_dir() else file.parent, False)

    def pictures(self, row: Row, *columns: str) -> tuple[Picture, ...]:
        """The images of the first of these columns that has any: a path, several with commas, bytes, or a list."""
        for column in columns:
            if (value := row.get(column)) is not None and value not in ("", []):
                return self.collected(row, list(self._split(row, value, column)), column)
        return ()

    def collected(self, row: Row, values: list[Any], column: str) -> tuple[Picture, ...]:
        """One picture for each value."""
        if values and self.refused:
            raise row.bad(f"{column} names an image, and the source says images: none; name the folder of its images")
        try:
            return tuple(
                self._picture(row, value, column, f"image {number} of the row")
                for number, value in enumerate(values, 1)
            )
        except BadPicture as error:
            raise row.bad(str(error)) from None

    def _split(self, row: Row, value: Any, column: str) -> Iterator[Any]:
        """A list stays as it is; text is split at commas, unless a file has this name."""
        if isinstance(value, list):
            yield from value
        elif isinstance(value, str) and "," in value and not value.startswith("data:"):
            whole = self.path / value
            if not self.refused and "\0" not in value and len(value) < 4096 and os.path.lexists(whole):
                yield value
            else:
                yield from (name.strip() for name in value.split(","))
        else:
            yield value

    def _picture(self, row: Row, value: Any, column: str, name: str) -> Picture:
        if isinstance(value, dict):
            held = [value[key] for key in ("bytes", "path", "url") if value.get(key) is not None]
            if not held:
                raise row.bad(f"{column}: {name} has neither bytes nor a path")
            value = held[0]
        if isinstance(value, (bytes, bytearray)):
            return BytesPicture(bytes(value), name)
        path = row.clean(value, f"{column}: {name}") if isinstance(value, str) else None
        if path is None:
            raise row.bad(f"{column}: {name} is {kind(value)}; it has to be a path, bytes or base64")
        if path.startswith("data:") or ENCODED.fullmatch(path):
            return BytesPicture.of_base64(path, name)
        if not path.strip():
            raise row.bad(f"{column}: {name} has an empty path")
        if "://" in path:
            raise row.bad(f"{column}: {name} is an address ({path[:60]}); download it and name the file")
        told = f"{path} was looked for in {self.path}; write images: with the folder that paths begin in"
        return FilePicture.at(path, self.path, self.fenced, "" if self.fenced or Path(path).is_absolute() else told)
