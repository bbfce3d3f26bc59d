"""The model and the objective: true transformers classes, masks that hold, metrics that mean what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from mmjobs.data.batch import collate
from mmjobs.data.encode import Processor
from mmjobs.data.example import Answer, Example, Origin, Turn
from mmjobs.data.formats import shapes
from mmjobs.model import parts, trees
from mmjobs.model.build import BuiltModel, build
from mmjobs.model.generate import greedy
from mmjobs.model.projectors import PROJECTORS
from mmjobs.objectives.sft import Sft
from mmlaunch.errors import BadInput, RecipeError
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.model import Projectors
from mmlaunch.recipe.parts import part_of

Made = Callable[..., tuple[BuiltModel, Processor]]


@pytest.fixture
def made(tiny: Callable[..., Recipe]) -> Made:
    """Make a tiny model and its processor; changes as for `tiny`."""

    def _made(**changes: Any) -> tuple[BuiltModel, Processor]:
        torch.manual_seed(1)
        recipe = tiny(**changes)
        built = build(recipe.model)
        built.network.eval()
        return built, Processor(built.chat, built.pixels, built.positions)

    return _made


def answered(row: int, answer: str) -> Example:
    example = shapes.example(row)
    return Example(example.images, example.prompt, (Answer(answer),), example.origin)


@pytest.mark.parametrize("projector", ["linear", "mlp", "vit", "perceiver", "pixel_shuffle"])
@pytest.mark.parametrize("layer", [-1, -2, 0, 2])
@pytest.mark.parametrize("class_token", [False, True])
def test_loss_of_an_example_does_not_depend_on_its_neighbours(
    made: Made, projector: str, layer: int, class_token: bool
) -> None:
    built, processor = made(
        model__projector=projector, model__vision__feature_layer=layer, model__vision__keep_class_token=class_token
    )
    assert isinstance(built.network, LlavaForConditionalGeneration)
    encoded = [
        processor.encode(answered(row, answer)) for row, answer in enumerate(("\0", "a much longer answer", "b"))
    ]
    sft = Sft()
    with torch.no_grad():
        together = sft(
            built.network, collate(encoded, built.pixels, 0)
        ).example_losses  # padded with a token that is real
        alone = torch.cat([sft(built.network, collate([one], built.pixels, 258)).example_losses for one in encoded])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize(("attention", "known"), [("plain", "trees"), ("mmca", "mask")])
@pytest.mark.parametrize("saving", ["off", "on"])
def test_packed_sequences_are_those_that_stand_alone(made: Made, attention: str, known: str, saving: str) -> None:
    """Losses and gradients, also with activation checkpointing, and whatever the attention."""
    built, processor = made(model__attention=attention, model__activation_checkpointing=saving)
    built.network.train()
    answers = ("red", "a much longer answer than the others", "b", "")
    encoded = [processor.encode(answered(row, answer)) for row, answer in enumerate(answers)]
    encoded.insert(
        2, processor.encode(Example((), (Turn("user", ("No image?",)),), (Answer("None."),), Origin("t", 1)))
    )
    sft = Sft()
    row = collate(encoded, built.pixels, 258, packed=True)
    assert trees.kind(built.network) == known
    packed = sft(built.network, row)
    torch.autograd.backward(packed.loss)
    grads = {name: p.grad.clone() for name, p in built.network.named_parameters() if p.grad is not None}
    built.network.zero_grad()
    alone = [sft(built.network, collate([one], built.pixels, 258)) for one in encoded]
    torch.autograd.backward(torch.stack([one.loss for one in alone]).sum())
    torch.testing.assert_close(
        packed.example_losses, torch.cat([one.example_losses for one in alone]), atol=1e-5, rtol=1e-5
    )
    for name, parameter in built.network.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(grads[name], parameter.grad, atol=1e-4, rtol=1e-4)


def test_accuracy_is_that_of_greedy_generation(made: Made) -> None:
    built, processor = made()
    sft, answers = Sft(), ("red", "top left")
    encoded = [processor.encode(answered(row, answer)) for row, answer in enumerate(answers)]
    prompts = [replace(one, answers=(), scores=()) for one in encoded]
    batch = collate(encoded, built.pixels, 258)
    optimizer = torch.optim.AdamW([p for p in built.network.parameters() if p.requires_grad], lr=1e-2)
    seen = set()
    for _ in range(60):
        measured = sft(built.network, batch)
        said = [greedy(built.network, built.chat, built.pixels, one, 48) for one in prompts]
        right = sum(text == answer for text, answer in zip(said, answers, strict=True))
        assert [float(value) for value in measured.metrics["accuracy"]] == [right, 2]
        seen.add(right)
        optimizer.zero_grad()
        torch.autograd.backward(measured.loss)
        optimizer.step()
    assert {0, 2} <= seen


def test_images_matter_and_their_tokens_are_counted(made: Made) -> None:
    built, processor = made()
    sft = Sft()
    one, other = (processor.encode(answered(row, "red")) for row in (1, 2))
    swapped = replace(one, image_inputs=other.image_inputs)
    assert one.prompt.ids.count(259) == 4
    with torch.no_grad():
        assert (
            sft(built.network, collate([one], built.pixels, 258)).example_losses
            != sft(built.network, collate([swapped], built.pixels, 258)).example_losses
        )


def test_weight_decay_spares_biases_norms_and_embeddings(made: Made) -> None:
    built, _ = made()
    shapes_of = dict(built.network.named_parameters())
    decayed = parts.decays(built.network)
    assert decayed <= shapes_of.keys() and {"lm_head.weight"} <= decayed
    assert not any(word in name for name in decayed for word in ("norm", "bias", "embed_tokens", "position_embedding"))
    assert all(shapes_of[name].ndim < 2 or "embed" in name for name in shapes_of.keys() - decayed)


def test_what_nobody_reads_is_not_trained(made: Made) -> None:
    built, processor = made()
    measured = Sft()(built.network, collate([processor.encode(shapes.example(3))], built.pixels, 258))
    torch.autograd.backward(measured.loss)
    for name, parameter in built.network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    one_layer, _ = made(model__train={"vision": "full", "vision_layers": 1})
    trained = {n for n, p in one_layer.network.named_parameters() if p.requires_grad and part_of(n) == "vision"}
    assert trained and all("encoder.layers.0." in name for name in trained)


def test_layers_that_do_not_exist_are_bad_input(made: Made) -> None:
    with pytest.raises(RecipeError, match="feature_layer"):
        made(model__vision__feature_layer=3)
    with pytest.raises(BadInput, match="vision_layers"):
        made(model__train={"vision": "full", "vision_layers": 2})


def test_names_of_the_schema_have_implementations() -> None:
    assert PROJECTORS.keys() == set(get_args(Projectors))
