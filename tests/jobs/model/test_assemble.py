"""Models from parts: CLIP, a projector and a LLaMA from real files are the LLaVA that transformers makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from mmjobs.data.batch import collate
from mmjobs.data.encode import Processor
from mmjobs.data.example import IMAGE, Answer, Example, Origin, Turn
from mmjobs.data.formats.shapes import example as drawing
from mmjobs.data.images.preprocess import Squares
from mmjobs.model import llava
from mmjobs.model.build import BuiltModel, build
from mmjobs.model.names import opening
from mmjobs.model.toys import models as toys
from mmjobs.model.toys import tokenizers
from mmlaunch.errors import BadInput
from mmlaunch.recipe.model import Model


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    toys.clip(folder / "clip")
    toys.clip(folder / "tower", whole=False)
    toys.llama(folder / "llama3", tokenizers.llama3_tokenizer())
    toys.llama(folder / "llama2", tokenizers.llama2_tokenizer())
    toys.llama(folder / "tied", tokenizers.llama3_tokenizer(), tie_word_embeddings=True)
    return folder


def made(parts: Path, language: str = "llama3", vision: Any = "clip", **more: Any) -> BuiltModel:
    where = str(parts / vision) if isinstance(vision, str) else vision
    names = {"vision": where, "language": str(parts / language), "chat_template": "plain"}
    built = build(Model.model_validate({**names, **more}))
    built.network.eval()
    return built


def question(words: str = "What is it?", answer: str = "A circle", images: int = 1) -> Example:
    pictures = tuple(drawing(n).images[0] for n in range(images))
    return Example(pictures, (Turn("user", (*[IMAGE] * images, words)),), (Answer(answer),), Origin("here", 1))


@pytest.mark.parametrize(("language", "vision"), [("llama3", "clip"), ("llama2", "tower"), ("tied", "clip")])
def test_logits_are_those_of_transformers(parts: Path, language: str, vision: str) -> None:
    built = made(parts, language, vision)
    assert type(built.network) is hf.LlavaForConditionalGeneration
    tower = hf.CLIPVisionModel.from_pretrained(parts / vision).eval()
    text: Any = hf.AutoModelForCausalLM.from_pretrained(parts / language).eval()
    assert isinstance(built.pixels, Squares)
    encoded = Processor(built.chat, built.pixels, 500).encode(question(images=2))
    ids = torch.tensor([encoded.prompt.ids + encoded.answers[0].ids])
    with torch.no_grad():
        ours = built.network(input_ids=ids, **encoded.image_inputs).logits
        features = tower(
            built.pixels.normal(encoded.image_inputs["pixel_values"]), output_hidden_states=True
        ).hidden_states[-2][:, 1:]
        features = built.network.model.multi_modal_projector(features)
        vocabulary = text.get_input_embeddings().num_embeddings
        embedded = text.get_input_embeddings()(ids.clamp(max=vocabulary - 1))
        embedded[ids == built.chat.image_id] = features.flatten(0, 1)
        theirs = text(inputs_embeds=embedded).logits
    torch.testing.assert_close(ours[..., :vocabulary], theirs, atol=1e-5, rtol=1e-5)


def test_new_rows_are_the_mean_and_old_ones_stay(parts: Path) -> None:
    before: Any = hf.AutoModelForCausalLM.from_pretrained(parts / "llama3")
    built = made(parts)
    network: Any = built.network
    for old, new in (
        (before.get_input_embeddings().weight, network.get_input_embeddings().weight),
        (before.lm_head.weight, network.get_output_embeddings().weight),
    ):
        assert len(new) % 64 == 0 and len(new) >= len(built.chat.tokenizer) > len(old)
        assert torch.equal(new[: len(old)], old)
        torch.testing.assert_close(new[len(old) :], old.mean(0).expand(len(new) - len(old), -1))
    tied = made(parts, "tied").network
    assert tied.get_input_embeddings().weight is tied.get_output_embeddings().weight


def test_colours_come_from_the_encoders_own_file(parts: Path) -> None:
    pixels = made(parts).pixels
    assert isinstance(pixels, Squares) and pixels.mean == (0.4, 0.5, 0.6)


@pytest.mark.parametrize("attention", ["plain", "mmca"])
@pytest.mark.parametrize("projector", ["linear", "vit", "perceiver", "pixel_shuffle"])
def test_saved_and_loaded_again(parts: Path, tmp_path: Path, projector: str, attention: str) -> None:
    built = made(
        parts,
        projector={"kind": projector, **({"queries": 4} if projector == "perceiver" else {})},
        attention=attention,
    )
    built.network.save_pretrained(tmp_path)
    with opening("x", str(tmp_path)):
        again = hf.AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(again) is llava.Assembled and again.config.projector == projector
    assert isinstance(built.pixels, Squares)
    encoded = Processor(built.chat, built.pixels, 500).encode(question())
    ids, normal = torch.tensor([encoded.prompt.ids]), built.pixels.normal(encoded.image_inputs["pixel_values"])
    with torch.no_grad():
        expected = built.network(input_ids=ids, **encoded.image_inputs).logits
        torch.testing.assert_close(again(input_ids=ids, pixel_values=normal).logits, expected, atol=1e-5, rtol=1e-5)


def test_rows_with_and_without_images_share_a_batch(parts: Path) -> None:
    built = made(parts)
    processor = Processor(built.chat, built.pixels, 500)
    examples = [question(images=count) for count in (0, 2, 1)]
    batch = collate([processor.encode(example) for example in examples], built.pixels, 0)
    with torch.no_grad():
        together = built.network.model(input_ids=batch.ids, attention_mask=batch.attention, **batch.image_inputs)[0]
        for row, example in enumerate(examples):
            one = collate([processor.encode(example)], built.pixels, 0)
            alone = built.network.model(input_ids=one.ids, **one.image_inputs)[0]
            torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], atol=1e-5, rtol=1e-4)


def test_what_cannot_be_loaded_is_named(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"model.language: .*nowhere: no such folder"):
        made(parts, "nowhere")
    with pytest.raises(BadInput, match=r"model.vision: .*llama3"):
        made(parts, vision="llama3")
    shutil.copytree(parts / "llama3", tmp_path / "holes")
    (tmp_path / "holes" / "model-00002-of-00006.safetensors").unlink()
    with pytest.raises(BadInput, match="holes"):
        build(
            Model.model_validate(
                {"vision": str(parts / "clip"), "language": str(tmp_path / "holes"), "chat_template": "plain"}
            )
        )
    with pytest.raises(BadInput, match="ships no chat template; write one of plain"):
        made(parts, chat_template="processor")
    with pytest.raises(BadInput, match=r"llama-3 is written with <\|end_header_id\|>, .*does not know"):
        made(parts, "llama2", chat_template="llama-3")


def test_a_missing_weight_is_never_a_random_one(parts: Path, tmp_path: Path) -> None:
    import safetensors.torch

    shutil.copytree(parts / "tower", tmp_path / "tower")
    file = tmp_path / "tower" / "model.safetensors"
    state = safetensors.torch.load_file(file)
    gone = next(name for name in state if "mlp.fc1.weight" in name)
    del state[gone]
    safetensors.torch.save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"lack .*mlp.fc1.weight"):
        made(parts, vision=str(tmp_path / "tower"))
    config = json.loads((tmp_path / "tower" / "config.json").read_text())
    (tmp_path / "tower" / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    with pytest.raises(BadInput, match=r"model\.vision"):
        made(parts, vision=str(tmp_path / "tower"))


@pytest.mark.parametrize("projector", ["mlp", "linear", "vit", "perceiver", "pixel_shuffle"])
@pytest.mark.parametrize("class_token", [False, True])
def test_the_saved_processor_counts_what_the_projector_makes(parts: Path, projector: str, class_token: bool) -> None:
    queries = {"queries": 4} if projector == "perceiver" else {}
    vision = {"path": str(parts / "clip"), "keep_class_token": class_token}
    built = made(parts, vision=vision, projector={"kind": projector, **queries})
    assert isinstance(built.pixels, Squares)
    encoded = Processor(built.chat, built.pixels, 500).encode(question())
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = built.processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    images = [question().images[0].open()]
    theirs = built.processor(text=[text], images=images, add_special_tokens=False, return_tensors="pt")
    assert theirs["input_ids"][0].tolist() == [
        *encoded.prompt.ids,
        *theirs["input_ids"][0][len(encoded.prompt) :].tolist(),
    ]
    assert built.chat.image_id is not None
    assert int((theirs["input_ids"] == built.chat.image_id).sum()) == encoded.prompt.ids.count(built.chat.image_id)
    ours = built.pixels.normal(encoded.image_inputs["pixel_values"])
    torch.testing.assert_close(theirs["pixel_values"], ours, atol=1e-6, rtol=0)
