"""Toy data: what is generated in place of a recipe's data is read by the same format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmjobs.data import toys
from mmjobs.data.formats.registry import FORMATS, parts
from mmlaunch.recipe.data import FORMATS as RECIPE_FORMATS
from mmlaunch.recipe.data import Source

READ = [name for name in FORMATS if name != "shapes"]
LAYOUTS = {"vlmevalkit": "rows.tsv", "rlaif_v": "rows", "ultrafeedback": "rows", "shp": "rows", "internvl": "meta.json"}


def read(folder: Path, name: str, file: str, **more: Any) -> list[Any]:
    split = "some_split" if "." not in file else None
    images = (str(folder) if more["images"] else "none") if RECIPE_FORMATS[name].image_folder else None
    source = Source(path=str(folder / file), format=name, split=split, images=images)
    toys.write(toys.ToyData(source, **{"rows": 6, "first": 100, "style": "words", "answers": 1, **more}), folder / file)
    return [example for part in parts(source) for example in part.rows]


@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize("name", READ)
def test_each_format_reads_what_is_generated_for_it(tmp_path: Path, name: str, images: bool) -> None:
    answers = 1 if FORMATS[name].holds.most < 2 else 2
    file = LAYOUTS.get(name, "rows.jsonl") if name != "ultrafeedback" or not images else "rows.jsonl"
    examples = read(tmp_path, name, file, images=images, answers=answers)
    seen = images and name != "shp"
    assert [len(example.images) for example in examples] == [int(seen)] * 6
    assert len({(example.prompt, example.images[0].identity if seen else "") for example in examples}) == 6
    if RECIPE_FORMATS[name].answers:
        assert all(len(example.answers) == answers for example in examples)
        assert all(example.answers[0].text != example.answers[-1].text for example in examples if answers > 1)
    for example in examples:
        assert all(picture.size() == (64, 64) for picture in example.images)


@pytest.mark.parametrize(("style", "truths"), [("choice", {"A"}), ("yes_no", {"Yes"}), ("number", {"101", "102"})])
def test_right_answers_are_of_the_kind_that_a_reward_function_reads(
    tmp_path: Path, style: str, truths: set[str]
) -> None:
    examples = read(tmp_path, "prompts", "rows.jsonl", images=True, style=style, rows=2)
    assert {example.truths[0] for example in examples} == truths


def test_what_two_models_said_are_other_answers_to_the_same_rows(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    one = read(tmp_path / "one", "predictions", "p.jsonl", images=True, answers=2)
    two = read(tmp_path / "two", "predictions", "p.jsonl", images=True, answers=2, turned=True)
    assert [example.prompt for example in one] == [example.prompt for example in two]
    assert all(a.answers != b.answers for a, b in zip(one, two, strict=True))
