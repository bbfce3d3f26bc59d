"""Preprocessing of a model put together from parts: what its encoder ships, and what serves the model.

`served` is transformers' own processor for the same tokens and pixels, which anyone can load.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import AutoImageProcessor, LlavaProcessor, QianfanOCRProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from mmjobs.data.images.preprocess import Squares
from mmjobs.model import tokens
from mmlaunch.errors import BadInput
from mmlaunch.recipe.model import Tiling, Vision

MEAN = (0.48145466, 0.4578275, 0.40821073)
SPREAD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own constants, for encoders that come without a preprocessor_config.json."""
_BICUBIC = 3


def shipped(vision: Vision) -> Any:
    """The image processor that comes with an encoder; None where none does."""
    if vision.path is None:
        return None
    try:
        return AutoImageProcessor.from_pretrained(vision.path)
    except (OSError, ValueError):
        return None


def colours(own: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the colours that an encoder was trained on."""
    return (MEAN, SPREAD) if own is None else (tuple(own.image_mean), tuple(own.image_std))


def tiling(wanted: Tiling, own: Any, side: int) -> Tiling:
    """The tiling with `encoder` replaced by what the encoder's own image processor does; CLIP crops."""
    if wanted.kind != "encoder":
        return wanted
    kind = "crop" if own is None else _kind(own, side)
    if kind is None:
        what = "the preprocessor_config.json of model.vision prepares images in a way that is not known here"
        raise BadInput(f"model.tiling: {what}; write crop, resize or pad")
    return wanted.model_copy(update={"kind": kind})


def _kind(own: Any, side: int) -> str | None:
    """The kind of tiling that gives an encoder's own pixels; None where no kind does."""
    size, square = _sides(own.size), {"height": side, "width": side}
    crops = bool(getattr(own, "do_center_crop", None))
    if getattr(own, "resample", _BICUBIC) != _BICUBIC or not own.do_resize:
        return None
    if crops and _sides(own.crop_size) != square:
        return None
    if getattr(own, "do_pad", None):
        return "pad" if size in (square, {"shortest_edge": side}) else None
    if size == square:
        return "resize"
    return "crop" if crops and size == {"shortest_edge": side} else None


def _sides(size: Any) -> dict[str, int]:
    """A size without the keys that it leaves empty."""
    return {name: value for name, value in dict(size or {}).items() if value is not None}


def served(pixels: Squares, tokenizer: Any, patch: int) -> Any:
    """The processor that is saved with the weights."""
    square = {"height": pixels.side, "width": pixels.side}
    norm: dict[str, Any] = {"image_mean": list(pixels.mean), "image_std": list(pixels.std)}
    if pixels.tiling.kind == "dynamic":
        return _of_tiles(pixels, tokenizer, square, norm)
    crops = pixels.tiling.kind == "crop"
    images = LlavaImageProcessorPil(
        do_pad=pixels.tiling.kind == "pad",
        size={"shortest_edge": pixels.side} if crops else square,
        do_center_crop=crops,
        crop_size=square,
        **norm,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="full",  # so that the next line says it all
        num_additional_image_tokens=pixels.features - (pixels.side // patch) ** 2,
        image_token=tokens.IMAGE,
        chat_template=tokenizer.chat_template,
    )


def _of_tiles(pixels: Squares, tokenizer: Any, square: dict[str, int], norm: dict[str, Any]) -> QianfanOCRProcessor:
    """transformers' processor for InternVL's tiles that needs nothing for videos; no words stand around an image."""
    most = pixels.tiling.max_tiles
    images = GotOcr2ImageProcessorPil(
        size=square, crop_to_patches=True, min_patches=min(pixels.tiling.min_tiles, most), max_patches=most, **norm
    )
    named = copy.deepcopy(tokenizer)
    named._set_model_specific_special_tokens(
        special_tokens={"start_image_token": "", "end_image_token": "", "context_image_token": tokens.IMAGE}
    )
    return QianfanOCRProcessor(
        images, named, image_seq_length=pixels.features, image_placeholder_token=tokens.IMAGE,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip


def unserved(wanted: Tiling) -> str | None:
    """Why no processor of transformers makes the tiles of a model; None where one does."""
    if wanted.kind != "dynamic":
        return None
    if not wanted.upscale:
        return "model.tiling.upscale: false, and transformers enlarges small images to fill their tiles"
    if not wanted.thumbnail and wanted.max_tiles > 1:
        return "model.tiling.thumbnail: false, and transformers always appends the whole image"
    return None
