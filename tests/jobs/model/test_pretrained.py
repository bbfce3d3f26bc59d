"""Whole models: every family's own processor gives the tokens and pixels, and rows of all kinds share a batch."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmjobs.data.batch import collate
from mmjobs.data.encode import Processor
from mmjobs.data.example import IMAGE, Answer, BadRow, Example, Origin, Turn
from mmjobs.data.images.image_file import BytesPicture
from mmjobs.model import parts
from mmjobs.model.build import BuiltModel, build
from mmjobs.model.toys import models as toys
from mmjobs.objectives import objective_of
from mmjobs.objectives.sft import Sft
from mmjobs.train.processor_parity import compare
from mmlaunch.errors import BadInput
from mmlaunch.recipe.model import Model
from mmlaunch.recipe.parts import PARTS, part_of
from mmlaunch.recipe.preference import Preference
from mmlaunch.recipe.requirements import Requirements


@pytest.fixture(scope="module", params=toys.SEEING)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BuiltModel:
    folder = toys.SEEING[request.param](tmp_path_factory.mktemp("whole") / request.param)
    made = build(Model.model_validate({"pretrained": str(folder)}))
    made.network.eval()
    return made


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    pixels = random.Random(width).randbytes(3 * width * height)
    Image.frombytes("RGB", (width, height), pixels).save(buffer, "PNG")
    return buffer.getvalue()


def asks(*sizes: tuple[int, int], words: tuple[Any, ...] = ("\nWhat? ",)) -> Example:
    pictures = tuple(BytesPicture(png(*size), f"image {n}") for n, size in enumerate(sizes))
    content = (*[IMAGE] * len(sizes), *words)
    return Example(pictures, (Turn("user", content),), (Answer("A circle"), Answer("Two")), Origin("here", 3))


def test_tokens_and_pixels_are_those_of_the_processor(built: BuiltModel) -> None:
    example = asks((60, 40), (30, 50))
    encoded = Processor(built.chat, built.pixels, 900).encode(example)
    parts_of = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "\nWhat? "}]
    messages = [{"role": "user", "content": parts_of}]
    text = built.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [picture.open() for picture in example.images]
    theirs = built.processor(text=[text], images=[images], return_tensors="pt")
    assert encoded.prompt.ids == theirs["input_ids"][0].tolist()
    for name, value in encoded.image_inputs.items():
        assert torch.equal(value, theirs[name])
    assert "pixel_values" in encoded.image_inputs


SEEN = {**toys.SEEING, "gemma3": toys.gemma3}
HISTORY = Turn("assistant", ("A red one",), True)


@pytest.fixture(scope="module", params=SEEN)
def processor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[BuiltModel, Processor]:
    folder = SEEN[request.param](tmp_path_factory.mktemp("seen") / request.param)
    made = build(Model.model_validate({"pretrained": str(folder)}))
    return made, Processor(made.chat, made.pixels, 2000)


@pytest.mark.parametrize(
    "turns",
    [
        [("What is it?",)],
        [(IMAGE, "What is it?")],
        [(IMAGE, "\nWhat is it?")],
        [(IMAGE, "\n\nWhat?")],
        [(IMAGE, " What?")],
        [(IMAGE, "<b>?")],
        [("What is it?\n", IMAGE)],
        [("a", IMAGE, "b")],
        [(IMAGE,)],
        [(IMAGE, IMAGE, "Both?")],
        [(IMAGE, "\n", IMAGE, "\nBoth?")],
        [(IMAGE, "One?"), ("And ", IMAGE, "?")],
    ],
)
def test_words_beside_an_image_are_tokenised_as_the_processor_does(
    processor: tuple[BuiltModel, Processor], turns: list[tuple[Any, ...]]
) -> None:
    """Its whole output: some put words or spaces around an image, which grow together with those of the user."""
    built, ours = processor
    content = [part for turn in turns for part in turn]
    pictures = asks(*[(60, 40), (30, 50)][: content.count(IMAGE)]).images
    prompt: list[Turn] = []
    for turn in turns:
        prompt += [*([HISTORY] if prompt else []), Turn("user", turn)]
    for answer in ("A circle", "\n\nNothing at all"):
        example = Example(pictures, tuple(prompt), (Answer(answer),), Origin("here", 3))
        assert compare(built.processor, ours, example) is None
        tree = ours.tree(example)
        learnt = [token for token, wanted in zip(tree.prompt.ids, tree.prompt.loss_mask, strict=True) if wanted]
        assert built.chat.image_id not in learnt
        if len(prompt) > 1:
            assert str(built.chat.tokenizer.decode(learnt)).strip().startswith("A red one")
        else:
            assert not learnt


def test_rows_of_all_kinds_share_a_batch(built: BuiltModel) -> None:
    processor, sft = Processor(built.chat, built.pixels, 900, requirements=Requirements(most=1)), Sft()
    encoded = [processor.encode(one) for one in (asks(), asks((60, 40)), asks((30, 50), (60, 60)), asks((40, 40)))]
    with torch.no_grad():
        together = sft(built.network, collate(encoded, built.pixels, 0)).example_losses
        alone = torch.cat([sft(built.network, collate([one], built.pixels, 0)).example_losses for one in encoded])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_answers_branch_off_in_all_families_that_can(built: BuiltModel) -> None:
    """Losses and gradients of packed trees are those of padded rows, where each answer has a row of its own."""
    settings = Preference.model_validate({"method": "mpo", "terms": {"plackett_luce": {}}, "reference": "none"})
    processor, objective = (
        Processor(built.chat, built.pixels, 900, requirements=settings.requirements),
        objective_of(settings),
    )
    encoded = [processor.encode(one) for one in (asks(), asks((60, 40)), asks((30, 50), (60, 60)))]
    assert built.branches == (built.network.config.model_type != "qwen2_vl")
    found = []
    for packed in (False, built.branches):
        measured = objective(built.network, collate(encoded, built.pixels, 0, packed))
        built.network.zero_grad()
        torch.autograd.backward(torch.stack(list(measured.losses.values())).sum())
        grads = [p.grad.clone() for p in built.network.parameters() if p.grad is not None]
        found.append((measured.example_losses, grads))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


def test_every_parameter_has_its_part(built: BuiltModel) -> None:
    table = parts.counts(built.network)
    assert {*table, "head"} == set(PARTS)
    assert {part for part, count in table.items() if count["trainable"]} == {"projector", "language", "embeddings"}


def test_dropout_is_of_the_language_model_alone(built: BuiltModel) -> None:
    dropped: Any = build(Model.model_validate({"pretrained": built.network.name_or_path, "dropout": 0.25})).network
    named = [
        (name, module.attention_dropout)
        for name, module in dropped.named_modules()
        if hasattr(module, "attention_dropout")
    ]
    found = {part_of(f"{name}.weight") for name, share in named if share == 0.25}
    assert found == {"language"}


def test_lora_reaches_the_language_model_alone(built: BuiltModel) -> None:
    lora = {"train": {"language": "lora", "projector": "frozen"}, "lora": {"rank": 2, "alpha": 4}}
    adapted = build(Model.model_validate({"pretrained": built.network.name_or_path, **lora}))
    trained = [name for name, parameter in adapted.network.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name and part_of(name) == "language" for name in trained)


def test_text_models_take_no_images(tmp_path: Path) -> None:
    made = build(Model.model_validate({"pretrained": str(toys.gemma(tmp_path / "gemma"))}))
    processor = Processor(made.chat, made.pixels, 200, requirements=Requirements(most=1))
    encoded = processor.encode(asks())
    assert made.chat.tokenizer.decode(encoded.answers[0].ids) == "A circle<end_of_turn>"
    assert Sft()(made.network, collate([encoded], made.pixels, 0)).example_losses.item() > 0
    with pytest.raises(BadRow, match="here:3: has an image, and this model takes none"):
        processor.encode(asks((20, 20)))
    system = Example((), (Turn("system", ("Be kind",)), Turn("user", ("Hello",))), (Answer("x"),), Origin("here", 4))
    with pytest.raises(BadRow, match="here:4: the chat template refuses it: System role not supported"):
        processor.encode(system)


def test_remote_code_is_refused_unless_the_recipe_says_so(tmp_path: Path) -> None:
    folder = toys.llava(tmp_path / "odd")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        config.replace('"model_type": "llava"', '"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd"}')
    )
    (folder / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(BadInput, match=r"model.pretrained: .*odd"):
        build(Model.model_validate({"pretrained": str(folder)}))
    assert not (tmp_path / "ran").exists()
