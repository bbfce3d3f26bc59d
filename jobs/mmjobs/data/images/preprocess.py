"""Preprocessing: from images to the arguments of a model, and the number of image tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy
import torch
from PIL import Image

from mmjobs.data.images.expand import Expansion
from mmjobs.data.images.tiling import Size, shared, squares, tiles
from mmlaunch.errors import BadInput
from mmlaunch.recipe.model import Tiling

_BLANK = (64, 64)
ImageInputs = dict[str, torch.Tensor]
"""Arguments of a model's forward that hold the images of one or more sequences."""


class Pixels(Protocol):
    """The image side of a model."""

    max_side: int
    several: bool
    """Whether adjacent images are read as each would be alone."""
    tiled: bool
    """Whether it knows a budget of tiles."""

    def expand(self, text: str, sizes: Sequence[Size], budget: int | None = None) -> str:
        """A rendered conversation with the words of all features of its images, which have these sizes.

        All images of a conversation share its `budget` of tiles.
        """

    def read(self, images: Sequence[Image.Image], budget: int | None = None) -> ImageInputs:
        """The arguments for the images of one conversation, which share the `budget` of tiles."""

    def options(self, images: int, budget: int | None = None) -> dict[str, int]:
        """What the exported processor has to be told for so many images of a conversation."""

    def join(self, image_inputs: Sequence[ImageInputs], ids: torch.Tensor) -> ImageInputs:
        """The arguments for several sequences, whose tokens are `ids`: [B, T]."""

    def blank(self) -> tuple[list[int], ImageInputs]:
        """The tokens of a blank image, and the image."""

    def features_of(self, image_inputs: ImageInputs) -> int | None:
        """The number of image tokens that the prompt must hold; None where only the model knows it."""

    def visible(self, image_inputs: ImageInputs) -> torch.Tensor:
        """The images for a person to look at: [N, 3, H, W] from 0 to 1."""


class Squares:
    """The images of a model that is put together from parts: CLIP's squares, each with the same number of tokens.

    They stay bytes until the network has them.
    """

    several = True

    def __init__(
        self,
        side: int,
        features: int,
        image_id: int,
        tiling: Tiling,
        mean: Sequence[float],
        std: Sequence[float],
        image_token: str = "<image>",
    ) -> None:
        self.side, self.features, self.image_id, self.tiling = side, features, image_id, tiling
        self.image_token, self.tiled = image_token, tiling.kind == "dynamic"
        self.max_side = tiling.max_side
        self.mean, self.std = tuple(mean), tuple(std)
        self._ground = (int(mean[0] * 255), int(mean[1] * 255), int(mean[2] * 255))

    def expand(self, text: str, sizes: Sequence[Size], budget: int | None = None) -> str:
        share = shared(self.tiling, len(sizes), budget)
        before, *behind = text.split(self.image_token)
        counts = [tiles(size, self.tiling, self.side, share) * self.features for size in sizes]
        return before + "".join(self.image_token * n + words for n, words in zip(counts, behind, strict=True))

    def read(self, images: Sequence[Image.Image], budget: int | None = None) -> ImageInputs:
        share = shared(self.tiling, len(images), budget)
        parts = [part for image in images for part in squares(image, self.tiling, self.side, self._ground, share)]
        if not parts:
            return {}
        values = numpy.empty((len(parts), 3, self.side, self.side), numpy.uint8)  # [N, 3, S, S]
        for planes, part in zip(values, parts, strict=True):
            planes[:] = numpy.asarray(part).transpose(2, 0, 1)
        return {"pixel_values": torch.from_numpy(values)}

    def options(self, images: int, budget: int | None = None) -> dict[str, int]:
        share = shared(self.tiling, images, budget)
        return {"max_patches": share} if self.tiling.kind == "dynamic" and share < self.tiling.max_tiles else {}

    def normal(self, values: torch.Tensor) -> torch.Tensor:
        """What the encoder was trained on, from 0 to 255. A byte is on its way to the device four times as fast."""
        mean, std = (torch.tensor(n, device=values.device).view(3, 1, 1) for n in (self.mean, self.std))
        return (values / 255 - mean) / std

    def join(self, image_inputs: Sequence[ImageInputs], ids: torch.Tensor) -> ImageInputs:
        parts = [one["pixel_values"] for one in image_inputs if one]
        return {"pixel_values": torch.cat(parts)} if parts else {}

    def blank(self) -> tuple[list[int], ImageInputs]:
        return [self.image_id] * self.features, {
            "pixel_values": torch.zeros(1, 3, self.side, self.side, dtype=torch.uint8)
        }

    def features_of(self, image_inputs: ImageInputs) -> int | None:
        return len(image_inputs["pixel_values"]) * self.features if image_inputs else 0

    def visible(self, image_inputs: ImageInputs) -> torch.Tensor:
        return image_inputs["pixel_values"] / 255 if image_inputs else torch.empty(0, 3, self.side, self.side)


class Processed:
    """The images of a pretrained model, through the processor that it ships."""

    max_side = 4096

    def __init__(self, processor: Any, arguments: Collection[str]) -> None:
        self.processor, self.arguments = processor, frozenset(arguments)
        self.several = "batch_num_images" not in self.arguments
        self.tiled = "max_patches" in getattr(processor.image_processor, "model_input_names", ()) or hasattr(
            processor.image_processor, "max_patches"
        )
        self._expansion = Expansion(processor)

    def expand(self, text: str, sizes: Sequence[Size], budget: int | None = None) -> str:
        return self._expansion.expand(text, tuple(sizes), self.options(len(sizes), budget))

    def read(self, images: Sequence[Image.Image], budget: int | None = None) -> ImageInputs:
        if not images:
            return {}
        limit = self.options(len(images), budget)
        made = self.processor.image_processor(images=list(images), return_tensors="pt", **limit)
        return {name: value for name, value in made.items() if name in self.arguments}

    def join(self, image_inputs: Sequence[ImageInputs], ids: torch.Tensor) -> ImageInputs:
        parts = [one for one in image_inputs if one]
        if not parts:
            return {}
        joined = {name: _joined([one[name] for one in parts]) for name in parts[0]}
        return joined | {name: torch.isin(ids, marked).long() for name, marked in self._marks.items()}

    def check(self) -> None:
        """Everything that the processor gives its model is passed on, or the model would read something else."""
        own = {"input_ids", "attention_mask", *self._marks, *self.read([Image.new("RGB", _BLANK)])}
        if lost := (set(self._sample) - own) & self.arguments:
            what = f"its processor also makes {', '.join(sorted(lost))}, which cannot be made for answers here"
            raise BadInput(f"model.pretrained: {what}; choose another model")

    @cached_property
    def _sample(self) -> dict[str, Any]:
        """The output of the processor for an image and a word."""
        text, images = f"{self.processor.image_token} a", [[Image.new("RGB", _BLANK)]]
        return dict(self.processor(text=[text], images=images, return_tensors="pt"))

    @cached_property
    def _marks(self) -> dict[str, torch.Tensor]:
        """Arguments that mark image tokens: in some models these attend to each other, or have 2-D positions."""
        ids, found = self._sample["input_ids"], {}
        for name in sorted({"mm_token_type_ids", "token_type_ids"} & self.arguments & set(self._sample)):
            marked = ids[self._sample[name] == 1].unique()
            if len(marked) and torch.equal(torch.isin(ids, marked).long(), self._sample[name].long()):
                found[name] = marked
        return found

    def blank(self) -> tuple[list[int], ImageInputs]:
        image = Image.new("RGB", _BLANK)
        made = self.processor(text=[self.processor.image_token], images=[[image]], add_special_tokens=False)
        return [int(token) for token in made["input_ids"][0]], self.read([image])

    def features_of(self, image_inputs: ImageInputs) -> int | None:
        return None  # the processor itself wrote them

    def visible(self, image_inputs: ImageInputs) -> torch.Tensor:
        values = image_inputs.get("pixel_values")
        if values is None or values.ndim < 4:
            return torch.empty(0, 3, 1, 1)  # Qwen's are patches in a row, which cannot be shown
        mean = torch.tensor(self.processor.image_processor.image_mean).view(3, 1, 1)
        std = torch.tensor(self.processor.image_processor.image_std).view(3, 1, 1)
        return (values.flatten(0, -4) * std + mean).clamp(0, 1)

    def options(self, images: int, budget: int | None = None) -> dict[str, int]:
        return {"max_patches": max(1, budget // max(1, images))} if self.tiled and budget else {}

    def __reduce__(self) -> tuple[type[Processed], tuple[Any, Collection[str]]]:
        return Processed, (self.processor, self.arguments)  # without its caches


class Blind:
    """For a text model: it takes no images, and says so."""

    max_side = 1
    several = True
    tiled = False

    def expand(self, text: str, sizes: Sequence[Size], budget: int | None = None) -> str:
        raise BadInput("this model takes no images")

    def read(self, images: Sequence[Image.Image], budget: int | None = None) -> ImageInputs:
        return {}

    def options(self, images: int, budget: int | None = None) -> dict[str, int]:
        return {}

    def join(self, image_inputs: Sequence[ImageInputs], ids: torch.Tensor) -> ImageInputs:
        return {}

    def blank(self) -> tuple[list[int], ImageInputs]:
        return [], {}

    def features_of(self, image_inputs: ImageInputs) -> int | None:
        return 0

    def visible(self, image_inputs: ImageInputs) -> torch.Tensor:
        return torch.empty(0, 3, 1, 1)


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One after the other; where sequences differ in tiles or sizes, the smaller are filled with zeros."""
    shape = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].ndim)]
    whole = parts[0].new_zeros(sum(len(part) for part in parts), *shape)
    start = 0
    for part in parts:
        whole[(slice(start, start + len(part)), *(slice(0, length) for length in part.shape[1:]))] = part
        start += len(part)
    return whole
