"""The processor check: before training, a few conversations are read as the exported processor would read them.

What serves the model is transformers' processor, from standard messages and images. A token or a pixel that differs
from what is trained would be seen by nobody, and the served model would be a little worse than the trained one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmjobs.data.encode import Encoded, Processor
from mmjobs.data.example import BadPicture, BadRow, Example, Turn
from mmjobs.data.images.preprocess import Squares
from mmjobs.data.loader import Examples
from mmlaunch.errors import BadInput

_ROWS, _CHECKED = 32, 2
"""Of the first rows, so many with images are checked, and so many without."""
_EQUAL = 1e-4
"""How far normalised pixels may be apart: they are rounded in another order."""


def check_processor(served: Any, training: Examples) -> None:
    """Refuse a model whose processor, `served`, makes other tokens or pixels of a training example than we do."""
    processor, counts = training.processor, {True: 0, False: 0}
    for index in range(min(_ROWS, len(training.mixture))):
        place = training.place_of(index)
        example, budget = training.mixture[place], training.mixture.part(place).max_tiles
        if counts[bool(example.images)] < _CHECKED and not processor.chat.has_special_words(example):
            try:
                difference = compare(served, processor, example, budget)
            except (BadRow, BadPicture):
                continue  # a damaged image: the loader says so
            counts[bool(example.images)] += 1
            if difference:
                what = f"its processor reads {example.origin} otherwise than training would: {difference}"
                raise BadInput(f"model: {what}; what serves would differ from what was trained: choose another model")


def compare(served: Any, processor: Processor, example: Example, budget: int | None = None) -> str | None:
    """How the processor's whole output for an example differs from what is trained; None where it does not."""
    encoded = processor.encode(example, budget)
    images = [picture.open(processor.pixels.max_side) for picture in example.images]
    options = processor.pixels.options(len(images), budget)
    question = _served(served, processor, example.prompt, images, options, asks=True)
    asked = processor.question(example, budget)
    if difference := _tokens(processor, asked, question["input_ids"][0].tolist()):
        return difference
    if encoded.answers:
        turns = (*example.prompt, Turn("assistant", (processor.chat.without_end(example.answers[0].text),)))
        whole = _served(served, processor, turns, images, options, asks=False)["input_ids"][0].tolist()
        ours = [*encoded.prompt.ids, *encoded.answers[0].ids][:-1]  # some templates write no end token at the end
        if difference := _tokens(processor, ours, whole[: len(ours)]):
            return difference
    return _pixels(processor, encoded, asked, question)


def _served(
    served: Any, processor: Processor, turns: Sequence[Turn], images: Sequence[Any], options: dict[str, Any], asks: bool
) -> Any:
    """What the processor makes of standard messages."""
    messages = processor.chat.messages(turns, images)
    if processor.chat.image_token is None:
        text = served.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
        begins = bool(served.bos_token) and text.startswith(served.bos_token)
        return served([text], add_special_tokens=not begins, return_tensors="pt")
    return served.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=asks, return_tensors="pt",
        processor_kwargs=options,
    )  # fmt: skip


def _tokens(processor: Processor, ours: Sequence[int], theirs: Sequence[int]) -> str | None:
    if list(ours) == list(theirs):
        return None
    place = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    said = [processor.chat.tokenizer.convert_ids_to_tokens(list(ids[place : place + 3])) for ids in (ours, theirs)]
    return f"{len(ours)} tokens here and {len(theirs)} there, from token {place} on {said[0]} and {said[1]}"


def _pixels(processor: Processor, encoded: Encoded, ids: Sequence[int], theirs: Any) -> str | None:
    """The first argument of the network that differs, beside the tokens."""
    ours = processor.pixels.join([encoded.image_inputs], torch.tensor([list(ids)]))
    for name, value in ours.items():
        if isinstance(processor.pixels, Squares):
            value = processor.pixels.normal(value)
        if name not in theirs:
            if encoded.image_inputs:
                return f"{name} is missing there"
        elif value.shape != theirs[name].shape:
            return f"{name} is {tuple(value.shape)} here and {tuple(theirs[name].shape)} there"
        elif (distance := float((value.double() - theirs[name].double()).abs().max())) > _EQUAL:
            return f"{name} differs by up to {distance:.3g}"
    return None
