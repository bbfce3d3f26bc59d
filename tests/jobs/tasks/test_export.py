"""What serves equals what was trained: tokens, pixels and scores of an exported directory, from standard messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image
from tests.jobs.model.test_pretrained import png

from mmjobs.data.encode import Processor
from mmjobs.data.example import Example
from mmjobs.data.formats.registry import parts
from mmjobs.model.build import BuiltModel, build
from mmjobs.model.restore import restore
from mmjobs.model.toys import models as toys
from mmjobs.model.toys import tokenizers
from mmjobs.tasks.export import export
from mmjobs.train.processor_parity import compare
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.data import Source
from mmlaunch.recipe.model import Model

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
TEMPLATES = {"llama-3": "llama3", "llama-2": "llama2", "vicuna": "llama2", "plain": "llama3"}
DYNAMIC = {"kind": "dynamic", "max_tiles": 6}
QUESTION = "What is it?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of models, and LLaVA's rows with none, one and two images."""
    folder = tmp_path_factory.mktemp("export")
    toys.clip(folder / "clip")
    toys.llama(folder / "llama3", tokenizers.llama3_tokenizer())
    toys.llama(folder / "llama2", tokenizers.llama2_tokenizer())
    (folder / "a.png").write_bytes(png(80, 60))
    (folder / "b.png").write_bytes(png(30, 90))
    rows = [
        (QUESTION, []),
        (f"<image>\n{QUESTION}", ["a.png"]),
        (f"{QUESTION}\n<image>", ["a.png"]),
        (QUESTION, ["b.png"]),
        (f"<image>\n<image>\n{QUESTION}", ["a.png", "b.png"]),
        (QUESTION, ["b.png", "a.png"]),
    ]
    lines = [
        {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": "A circle"}], "image": images}
        for q, images in rows
    ]
    (folder / "rows.json").write_text(json.dumps(lines))
    return folder


def assembled(folder: Path, template: str, tiling: Any) -> BuiltModel:
    named = {"vision": str(folder / "clip"), "language": str(folder / TEMPLATES[template])}
    return build(Model.model_validate({**named, "chat_template": template, "tiling": tiling}))


def rows_of(folder: Path) -> list[Example]:
    (part,) = parts(Source(path=str(folder / "rows.json"), format="llava", images=str(folder)))
    return list(part.rows)


def standard(images: list[Image.Image], behind: bool) -> list[dict[str, Any]]:
    """What everybody writes."""
    shown: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    words = [{"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": [*words, *shown] if behind else [*shown, *words]}]


@pytest.mark.parametrize("tiling", ["encoder", "resize", "pad", DYNAMIC], ids=str)
@pytest.mark.parametrize("template", TEMPLATES)
def test_standard_messages_serve_what_was_trained(folder: Path, tmp_path: Path, template: str, tiling: Any) -> None:
    built = assembled(folder, template, tiling)
    for one in (built.network.config, built.processor):
        one.save_pretrained(tmp_path)
    served: Any = hf.AutoProcessor.from_pretrained(tmp_path)
    processor = Processor(built.chat, built.pixels, 900)
    for place, row in enumerate(rows_of(folder)):
        trained = processor.encode(row)
        images = [picture.open() for picture in row.images]
        options = built.pixels.options(len(images)) if len(images) > 1 else {}
        asked = served.apply_chat_template(
            standard(images, behind=place == 2), tokenize=True, return_dict=True, add_generation_prompt=True,
            return_tensors="pt", processor_kwargs=options,
        )  # fmt: skip
        assert asked["input_ids"][0].tolist() == processor.question(row)
        assert len(asked.get("pixel_values", [])) == len(trained.image_inputs.get("pixel_values", []))
        assert compare(served, processor, row) is None


def test_the_check_sees_another_template_and_other_pixels(folder: Path) -> None:
    built = assembled(folder, "plain", "pad")
    processor, row = Processor(built.chat, built.pixels, 900), rows_of(folder)[1]
    other = assembled(folder, "plain", "resize").processor
    assert "pixel_values differs by up to" in str(compare(other, processor, row))
    other = assembled(folder, "llama-3", "pad").processor
    assert "from token 1 on" in str(compare(other, processor, row))
    other = assembled(folder, "plain", DYNAMIC).processor
    assert "tokens here and" in str(compare(other, processor, row))


def trained(job: Jobs, recipe: Recipe) -> Any:
    run = job("run")
    assert run.run(recipe) == [0], run.log()
    return run


def model_of(folder: Path, **more: Any) -> dict[str, Any]:
    named = {"vision": str(folder / "clip"), "language": str(folder / "llama3"), "chat_template": "llama-3"}
    return {**named, "train": {"vision": "full"}, **more}


def data_of(folder: Path) -> dict[str, Any]:
    rows = {"path": str(folder / "rows.json"), "format": "llava", "images": str(folder)}
    return {"train": rows, "eval": [], "workers": 0, "max_tokens": 900}


def test_an_exported_model_of_tiles_gives_the_trained_scores(
    folder: Path, job: Jobs, tiny: Recipes, tmp_path: Path
) -> None:
    recipe = tiny(model=model_of(folder, tiling=DYNAMIC), data=data_of(folder), batch={"global": 2}, steps=1)
    run, out = trained(job, recipe), tmp_path / "out"
    export(run.paths.root, out)
    built = restore(recipe, run.paths.checkpoint(1))
    ours: Any = built.network
    served: Any = hf.AutoProcessor.from_pretrained(out)
    theirs: Any = hf.AutoModelForImageTextToText.from_pretrained(out).eval()
    processor = Processor(built.chat, built.pixels, 900)
    for row in rows_of(folder):
        encoded, images = processor.encode(row), [picture.open() for picture in row.images]
        asked = served.apply_chat_template(
            standard(images, behind=row.prompt[0].content[0] == QUESTION), tokenize=True, return_dict=True,
            add_generation_prompt=True, return_tensors="pt", processor_kwargs=built.pixels.options(len(images)),
        )  # fmt: skip
        with torch.no_grad():
            expected = ours.eval()(input_ids=torch.tensor([processor.question(row)]), **encoded.image_inputs).logits
            torch.testing.assert_close(theirs(**asked).logits, expected, atol=1e-4, rtol=1e-4)
    card = (out / "README.md").read_text()
    assert f"<image>\n{QUESTION.replace('it', 'this')}<|eot_id|>" in card
    assert '"max_patches": max(1, 6 // number_of_images)' in card


@pytest.mark.parametrize("option", ["upscale", "thumbnail"])
def test_tiles_that_transformers_does_not_know_are_told_and_refused(
    folder: Path, job: Jobs, tiny: Recipes, tmp_path: Path, option: str
) -> None:
    tiling = {**DYNAMIC, option: False}
    run = trained(job, tiny(model=model_of(folder, tiling=tiling), data=data_of(folder), batch={"global": 2}, steps=1))
    (told,) = run.events("warning")
    assert f"model.tiling.{option}: false" in told["what"] and "will need --no-processor" in told["what"]
    with pytest.raises(BadInput, match=rf"served otherwise than they were trained: model.tiling.{option}: false"):
        export(run.paths.root, tmp_path / "out")
    export(run.paths.root, tmp_path / "out", processor=False)
    assert not (tmp_path / "out" / "processor_config.json").exists()
    assert "There is no processor here" in (tmp_path / "out" / "README.md").read_text()


def test_a_language_model_alone_is_trained_and_served(folder: Path, job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    """A recipe without `model.vision` is one for text."""
    rows = tmp_path / "text.jsonl"
    talk = {"conversations": [{"from": "human", "value": " Hello "}, {"from": "gpt", "value": " Hi there "}]}
    rows.write_text("".join(json.dumps(talk) + "\n" for _ in range(4)))
    model = {"language": str(folder / "llama2"), "chat_template": "llama-2"}
    data = {"train": {"path": str(rows), "format": "llava", "images": "none"}, "eval": [], "workers": 0}
    recipe = tiny(model=model, data=data, batch={"global": 2}, steps=1)
    run = trained(job, recipe)
    export(run.paths.root, tmp_path / "out")
    served = hf.AutoTokenizer.from_pretrained(tmp_path / "out")
    network: Any = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(network) is hf.LlamaForCausalLM and "<image>" not in served.get_vocab()
    asked = served.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    built = restore(recipe, run.paths.checkpoint(1))
    (part,) = parts(Source(path=str(rows), format="llava", images="none"))
    asked_ids = served(str(asked), add_special_tokens=False)["input_ids"]
    assert asked_ids == Processor(built.chat, built.pixels, 128).question(part.rows[0])
    assert "<s>[INST] What is this? [/INST]" in (tmp_path / "out" / "README.md").read_text()
