"""Toy data: rows about drawn shapes, written in the format and the layout of a recipe's own data."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmjobs.data.example import Answer, Example, Turn
from mmjobs.data.formats import shapes
from mmjobs.data.formats.internvl import meta_of
from mmjobs.data.formats.registry import FORMATS, Format, recognised
from mmjobs.data.readers import saved
from mmjobs.data.writers.files import KINDS, RowFile
from mmjobs.data.writers.fit import PARTS, Holds, fitted
from mmjobs.data.writers.images import Placed
from mmjobs.data.writers.words import Facts
from mmlaunch.recipe.data import Source

SHP, PREDICTIONS = "shp", "predictions"
OF_OWN = {SHP: Holds(fewest=2, most=2, images=False), PREDICTIONS: Holds(truths=1)}
"""Formats whose rows come from elsewhere, and are written here alone."""


@dataclass(frozen=True)
class ToyData:
    """What one source of a recipe is replaced by."""

    source: Source
    """As the recipe has it: its format, the ending of its name, its split."""
    rows: int
    first: int
    """The drawing of the first row: sources that do not overlap share no image and no prompt."""
    answers: int
    """Answers of a row, where its format holds as many."""
    images: bool
    """Whether rows have an image; otherwise the question describes it."""
    style: Literal["words", "number", "choice", "yes_no"]
    """What right answers are: some reward functions read nothing else."""
    turned: bool = False
    """Whether the answers come in the opposite order, as those of a second model."""


def write(toy: ToyData, path: Path) -> None:
    """Write the rows at `path`, whose folder exists: a file, or a folder for what has no ending."""
    name = recognised(toy.source) if toy.source.format == "auto" else toy.source.format
    kind = FORMATS[name]
    if kind.name == "internvl":
        _write_sets(toy, kind, path)
    elif path.suffix in KINDS:
        _write_lines(toy, kind, path)
    else:
        _write_table(toy, kind, path)


def _write_lines(toy: ToyData, kind: Format, path: Path) -> int:
    images = Placed(path, kind.holds.embeds)
    with RowFile(path, kind.holds.columns) as file:
        for place in range(toy.rows):
            example = _fitted(toy, kind, place)
            file.write(_row(toy, kind, example, images.names(example), place))
    return file.count


def _write_table(toy: ToyData, kind: Format, path: Path) -> None:
    """A parquet file, or a folder of one, with the images in it."""
    rows = []
    for place in range(toy.rows):
        example = _fitted(toy, kind, place)
        held = [picture.read() for picture in example.images]
        names = [base64.b64encode(data).decode() for data in held]
        rows.append(_row(toy, kind, example, names, place))
    split = toy.source.split or "train"
    saved.write(rows, path if path.suffix == ".parquet" else path / "data" / f"{split}-00000-of-00001.parquet")


def _write_sets(toy: ToyData, kind: Format, path: Path) -> None:
    """A meta file with one set of rows beside it."""
    if path.suffix != ".json":
        path.mkdir()
        path = path / "meta.json"
    rows = path.with_suffix(".jsonl")
    path.write_text(json.dumps(meta_of(rows, _write_lines(toy, kind, rows), ""), indent=2) + "\n")


def _fitted(toy: ToyData, kind: Format, place: int) -> Example:
    holds = OF_OWN.get(kind.name, kind.holds)
    example = _example(toy if holds.images else replace(toy, images=False), place)
    count = max(holds.fewest, min(toy.answers, holds.most))
    example = replace(example, answers=example.answers[:count])
    return fitted(example, holds, [*PARTS])[0]


def _example(toy: ToyData, place: int) -> Example:
    """A question about a drawing; right answer first, as all formats have them."""
    number = toy.first + place
    drawn = shapes.example(number)
    (question,) = (part for part in drawn.prompt[0].content if isinstance(part, str))
    question, texts = _asked(toy.style, question, number, [answer.text for answer in drawn.answers])
    answers = tuple(Answer(text, float(len(texts) - worse)) for worse, text in enumerate(texts))
    example = replace(drawn, answers=answers[::-1] if toy.turned else answers, truths=(texts[0],))
    if toy.images:
        return replace(example, prompt=(Turn("user", (drawn.prompt[0].content[0], question)),))
    text = f"Drawing {number} shows something {texts[0]}. {question}"
    return replace(example, images=(), prompt=(Turn("user", (text,)),))


def _asked(style: str, question: str, number: int, texts: Sequence[str]) -> tuple[str, list[str]]:
    """The question of a style, and three answers to it, the right one first."""
    if style == "number":
        return f"{question} And how much is {number} + 1?", [str(number + more) for more in (1, 2, 3)]
    if style == "choice":
        options = "\n".join(f"{letter}. {text}" for letter, text in zip("ABC", texts, strict=True))
        return f"{question}\n{options}", ["A", "B", "C"]
    if style == "yes_no":
        return f"{question} Is it {texts[0]}?", ["Yes", "No", "Perhaps"]
    return question, list(texts)


def _row(toy: ToyData, kind: Format, example: Example, images: Sequence[str], place: int) -> Mapping[str, Any]:
    if kind.name == SHP:
        return _votes(example, place)
    if kind.name == PREDICTIONS:
        return _prediction(example, images, place)
    assert kind.row_of is not None
    return kind.row_of(example, images, Facts(place))


def _votes(example: Example, place: int) -> dict[str, Any]:
    better, worse = example.answers
    row = {"post_id": f"toy{place}", "history": example.prompt[0].text, "human_ref_A": better.text}
    return row | {"human_ref_B": worse.text, "score_A": 9, "score_B": 2, "labels": 1}


def _prediction(example: Example, images: Sequence[str], place: int) -> dict[str, Any]:
    said = [answer.text for answer in example.answers]
    return {
        "index": place, "source": "toy", "prompt": example.prompt[0].text, "images": list(images),
        "truths": list(example.truths), "predictions": said, "finish": ["eos"] * len(said),
        "tokens": {"prompt": 20, "answer": [4] * len(said)}, "log_probs": [-1.0] * len(said), "error": None,
    }  # fmt: skip
