"""The rows that a task makes: preference pairs and answered questions, in the `trl` format, which others read too."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from mmjobs.data.example import BadPicture, Example, Picture, Slot
from mmjobs.data.images.image_file import FilePicture
from mmlaunch.run.files import publish
from mmlaunch.run.shards import IMAGES

Made = dict[str, Any]


def pair(example: Example, chosen: str, rejected: str, **more: Any) -> Made:
    """A row of two answers to the prompt of an example."""
    return {**_asked(example), "chosen": _said(chosen), "rejected": _said(rejected), **more}


def answered(example: Example, answer: str, **more: Any) -> Made:
    """A row of one answer, to learn from."""
    return {**_asked(example), "completion": _said(answer), **more}


def path_of(picture: Picture) -> str:
    """Where an image can be found again: its file, or the file beside the output that it gets where it has none."""
    if isinstance(picture, FilePicture):
        return str(Path(picture.path).absolute())
    try:
        return f"{IMAGES}/{picture.file_name}"
    except BadPicture:
        return picture.identity


def keep(example: Example, folder: Path) -> None:
    """Write those images of an example that stood in its row, or were drawn, into files of a folder."""
    for picture in example.images:
        if isinstance(picture, FilePicture):
            continue
        with suppress(BadPicture):  # whoever needs it says so
            path = folder / picture.file_name
            if not path.is_file():
                folder.mkdir(exist_ok=True)
                publish(path, picture.read())


def _asked(example: Example) -> Made:
    images = {"images": [path_of(picture) for picture in example.images]} if example.images else {}
    return {**images, "prompt": [{"role": turn.role, "content": _content(turn.content)} for turn in example.prompt]}


def _content(content: tuple[str | Slot, ...]) -> str | list[dict[str, str]]:
    if not any(isinstance(part, Slot) for part in content):
        return "".join(part for part in content if isinstance(part, str))
    return [{"type": "image"} if isinstance(part, Slot) else {"type": "text", "text": part} for part in content]


def _said(answer: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": answer}]
