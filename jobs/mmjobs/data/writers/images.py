"""Images of written rows: paths as the new file has to name them, files for images that had none, or base64."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from pathlib import Path

from PIL import Image

from mmjobs.data.example import BadPicture, BadRow, Example, Picture
from mmjobs.data.images.image_file import FilePicture
from mmlaunch.run.files import explained, publish


class Placed:
    """The images of the rows of one file, `beside` which images without a file of their own are written."""

    def __init__(self, beside: Path, embedded: bool = False, absolute: bool = False) -> None:
        self.folder = os.path.abspath(beside.parent)  # noqa: PTH100  links stay as they are
        self.own = Path(self.folder) / f"{beside.stem}-images"
        self.embedded, self.absolute = embedded, absolute
        self.short = self.full = self.made = 0

    def names(self, example: Example) -> list[str]:
        """What stands in the row for each image; raises `BadRow` for one that is missing or no image."""
        try:
            return [self._name(picture) for picture in example.images]
        except BadPicture as error:
            raise BadRow(example.origin, str(error)) from None

    def _name(self, picture: Picture) -> str:
        picture.size()  # a header that cannot be read is found here, and not when somebody trains
        if self.embedded:
            return base64.b64encode(picture.read()).decode()
        path = os.path.abspath(picture.path) if isinstance(picture, FilePicture) else self._written(picture)  # noqa: PTH100  links stay
        short = path.startswith(self.folder.rstrip("/") + "/") and not self.absolute
        self.short += short
        self.full += not short
        return os.path.relpath(path, self.folder) if short else path

    def _written(self, picture: Picture) -> str:
        """The file of an image that had none, named by its content: the same image is one file."""
        data = picture.read()
        kind = (Image.open(io.BytesIO(data)).format or "png").lower()
        name = hashlib.blake2b(data, digest_size=16).hexdigest() + (".jpg" if kind == "jpeg" else f".{kind}")
        path = self.own / name
        if not path.is_file():
            with explained(f"{path}: cannot be written"):
                self.own.mkdir(exist_ok=True)
                publish(path, data)
            self.made += 1
        return str(path)
