"""A processor's own words for images: what it hands to its tokenizer, asked without preprocessing an image twice."""

from __future__ import annotations

import copy
from typing import Any, NoReturn

import numpy
import torch
from PIL import Image

from mmjobs.data.images.tiling import Size

_KEPT = 4096
"""Outcomes of the image processor that are remembered."""


class Expansion:
    """The conversation of a pretrained model as its tokenizer gets it, from the sizes of its images alone."""

    def __init__(self, processor: Any) -> None:
        self._processor = copy.copy(processor)
        self._processor.image_processor = _Remembered(processor.image_processor)
        self._processor.tokenizer = _Listener(processor.tokenizer)

    def expand(self, text: str, sizes: tuple[Size, ...], limit: dict[str, int]) -> str:
        """`text` as the processor changes it; blank images are enough, since only their sizes count."""
        blank = [Image.new("RGB", size) for size in sizes]
        try:
            self._processor(text=[text], images=[blank], add_special_tokens=False, **limit)
        except _Heard as heard:
            return heard.text
        raise TypeError(f"{type(self._processor).__name__} does not call its tokenizer")


class _Heard(Exception):
    """What the processor wanted to be tokenised."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class _Listener:
    """Stands in the tokenizer's place: it has all of its attributes, and tells what it is called with."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_tokenizer"], name)

    def __call__(self, text: Any, **_: Any) -> NoReturn:
        raise _Heard(text if isinstance(text, str) else text[0])


class _Remembered:
    """An image processor whose outcome depends on the sizes of its images; it remembers it, without the pixels."""

    def __init__(self, processor: Any) -> None:
        self._processor, self._outcomes = processor, dict[Any, Any]()

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_processor"], name)

    def __call__(self, images: Any, **options: Any) -> Any:
        key = (_sizes(images), repr(sorted(options.items())))
        if key not in self._outcomes:
            if len(self._outcomes) >= _KEPT:
                self._outcomes.clear()
            outcome = self._processor(images, **options)
            outcome.data = _light(outcome.data)
            self._outcomes[key] = outcome
        return copy.deepcopy(self._outcomes[key])


def _sizes(images: Any) -> Any:
    return images.size if isinstance(images, Image.Image) else tuple(map(_sizes, images))


def _light(value: Any) -> Any:
    """The same shapes; pixels take no memory."""
    if isinstance(value, dict):
        return {name: _light(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_light(one) for one in value)
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.new_zeros(()).expand(value.shape)
    if isinstance(value, numpy.ndarray) and value.dtype.kind == "f":
        return numpy.broadcast_to(numpy.zeros((), value.dtype), value.shape)
    return value
