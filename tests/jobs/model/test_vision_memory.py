"""The vision memory: the same features, each image encoded once, shared by encoders with equal weights alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mmjobs.data.batch import collate
from mmjobs.data.encode import Processor
from mmjobs.data.formats import shapes
from mmjobs.model.build import BuiltModel, build
from mmjobs.model.vision_memory import VisionMemory
from mmjobs.objectives.forward import answer_token_log_probs
from mmlaunch.recipe import Recipe

Tiny = Callable[..., Recipe]


def made(tiny: Tiny, seed: int, **changes: str) -> BuiltModel:
    torch.manual_seed(seed)
    return build(tiny(model__train__vision="frozen", **changes).model)


def test_each_image_is_encoded_once_and_alone(tiny: Tiny) -> None:
    plain, first, second, other = made(tiny, 1), made(tiny, 1), made(tiny, 1), made(tiny, 2)
    memory = VisionMemory()
    assert all(memory.serve(one.network) for one in (first, second, other))
    processor = Processor(plain.chat, plain.pixels, 128)
    encoded = [processor.encode(shapes.example(number)) for number in (1, 2, 3)]
    both = collate(encoded[:2], plain.pixels, 0, packed=True)
    expected = answer_token_log_probs(plain.network, both)
    torch.testing.assert_close(answer_token_log_probs(first.network, both), expected)
    assert memory.encoded == 2
    again = answer_token_log_probs(second.network, collate(encoded[1:], plain.pixels, 0, packed=True))
    assert memory.encoded == 3, "the second image was known, though another network had seen it"
    answers_of_second = len(encoded[1].loss_tokens) and sum(encoded[1].loss_tokens)
    torch.testing.assert_close(again[:answers_of_second], expected[-answers_of_second:])
    answer_token_log_probs(other.network, both)
    assert memory.encoded == 5, "other weights see other features"
    memory.forget()
    answer_token_log_probs(first.network, both)
    assert memory.encoded == 7


def test_the_projector_still_learns(tiny: Tiny) -> None:
    plain, served = made(tiny, 1), made(tiny, 1)
    memory = VisionMemory()
    memory.serve(served.network)
    processor = Processor(plain.chat, plain.pixels, 128)
    batch = collate([processor.encode(shapes.example(1))], plain.pixels, 0)
    for built in (plain, served):
        for _ in range(2):
            answer_token_log_probs(built.network, batch).sum().backward()
    for (name, one), other in zip(plain.network.named_parameters(), served.network.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, msg=name)
    assert memory.encoded == 1


def test_what_is_trained_is_not_remembered(tiny: Tiny) -> None:
    torch.manual_seed(1)
    assert not VisionMemory().serve(build(tiny().model).network)
