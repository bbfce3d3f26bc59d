"""What is written in a format is read again as the same example; what a format cannot hold is named."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import examples

from mmjobs.data.example import IMAGE, Answer, Example, Origin, Slot, Turn
from mmjobs.data.formats.internvl import meta_of
from mmjobs.data.formats.registry import FORMATS, recognised
from mmjobs.data.images.image_file import BytesPicture
from mmjobs.data.readers.turns import joined
from mmjobs.data.writers.files import RowFile
from mmjobs.data.writers.fit import PARTS, Holds, Unfit, fitted
from mmjobs.data.writers.images import Placed
from mmjobs.data.writers.words import Facts
from mmlaunch.recipe.data import Source

WRITTEN = [name for name, kind in FORMATS.items() if kind.row_of is not None]

FILTERED = [HealthCheck.filter_too_much, HealthCheck.too_slow]
PIECES = (
    *(
        "a",
        "B",
        " ",
        "\n",
        "\r",
        "\t",
        '"',
        "'",
        "<image>",
        "<image 1>",
        "[",
        "]",
        ",",
        "é",
        "中",
        "\u2028",
        "ASSISTANT:",
        "USER: ",
    ),
)
TEXT = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
)
WORDS = TEXT.filter(lambda text: bool(text.strip()))


def png(shade: int) -> BytesPicture:
    stream = io.BytesIO()
    Image.new("L", (3, 2), shade).save(stream, "PNG")
    return BytesPicture(stream.getvalue(), f"shade {shade}")


@st.composite
def any_example(draw: st.DrawFn, holds: Holds) -> Example:
    """An example as some format may have read it; with what this one needs, so that it can often be written."""
    images: list[BytesPicture] = []
    turns = [Turn("system", (draw(WORDS),))] if draw(st.booleans()) else []
    learnt = draw(st.booleans())
    for number in range(rounds := draw(st.sampled_from([1, 1, 2]))):
        parts: list[str | Slot] = [draw(WORDS)]
        for _ in range(draw(st.integers(0, 2))):
            images.append(png(draw(st.integers(0, 255))))
            parts.insert(draw(st.integers(0, len(parts))), IMAGE)
            parts.insert(draw(st.integers(0, len(parts))), draw(TEXT))
        turns.append(Turn("user", joined(parts)))
        turns += [Turn("assistant", (draw(WORDS),), learnt)] if number < rounds - 1 else []
    texts = draw(st.lists(WORDS, min_size=holds.fewest, max_size=3, unique=True))
    scores: Sequence[float | None] = [None] * len(texts)
    if holds.scored or draw(st.booleans()):
        drawn = draw(st.lists(st.floats(-9, 9), min_size=len(texts), max_size=len(texts)))
        scores = sorted(drawn, reverse=True)
    answers = tuple(Answer(text, score) for text, score in zip(texts, scores, strict=True))
    return Example(
        tuple(images), tuple(turns), answers, Origin("drawn", 0), draw(st.none() | WORDS),
        tuple(draw(st.lists(WORDS, max_size=3))), tuple(draw(st.lists(WORDS, max_size=2))),
    )  # fmt: skip


def write(example: Example, name: str, folder: Path) -> Path:
    kind = FORMATS[name]
    assert kind.row_of is not None
    path = folder / ("rows.tsv" if kind.holds.columns else "rows.jsonl")
    row = kind.row_of(example, Placed(path, kind.holds.embeds).names(example), Facts(7, "group"))
    with RowFile(path, kind.holds.columns) as file:
        file.write(row)
    if name == "internvl":
        (folder / "meta.json").write_text(json.dumps(meta_of(path, 1, "")))
        return folder / "meta.json"
    return path


def compared(example: Example) -> Any:
    """An example by what matters: pictures by their bytes; marks of what is learnt only where there is an answer."""
    learnt = len(example.answers) == 1
    turns = tuple(turn if learnt else replace(turn, in_loss=False) for turn in example.prompt)
    pictures = [hashlib.sha256(picture.read()).hexdigest() for picture in example.images]
    return replace(example, images=(), prompt=turns, origin=Origin("", 0)), pictures


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_read_again(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """So a row that goes from any format to any other and back is the same example."""
    folder = tmp_path_factory.mktemp(name)
    count = 0

    @settings(max_examples=examples(10), deadline=None, database=None, suppress_health_check=FILTERED)
    @given(drawn=any_example(FORMATS[name].holds))
    def holds(drawn: Example) -> None:
        nonlocal count
        try:
            example, _ = fitted(drawn, FORMATS[name].holds, list(PARTS))
        except Unfit as error:
            assert error.part == "rows" and error.what
            assume(False)
        path = write(example, name, folder)
        count += 1
        scored = name == "trl" and any(answer.score is not None for answer in example.answers)
        assert recognised(Source(path=str(path))) == ("ultrafeedback" if scored else name)
        (back,) = FORMATS[name].rows(Source(path=str(path)))
        assert compared(back) == compared(example)
        again, dropped = fitted(back, FORMATS[name].holds)
        assert dropped == () and again == back, "nothing of what was read is too much to write"

    holds()
    assert count >= 5, "most of what is drawn can be written"


def test_what_does_not_fit_is_named_and_dropped_on_demand() -> None:
    turns = (Turn("user", (IMAGE, "Q")), Turn("assistant", ("A",)), Turn("user", ("R",)))
    answers = (Answer("a", 2.0), Answer("b", 1.0), Answer("c", 0.0))
    full = Example((png(1),), turns, answers, Origin("f", 3), "x", ("t", "u"), ("v",))
    holds = FORMATS["rlaif_v"].holds
    drop: list[str] = []
    said = []
    while True:
        try:
            example, dropped = fitted(full, holds, drop)
            break
        except Unfit as error:
            said.append(error.what)
            drop.append(error.part)
    assert said == [
        "has 3 answers", "has scores", "has a conversation of 3 turns", "has the label x", "has 2 right answers",
        "has 1 later turn",
    ]  # fmt: skip
    assert dropped == tuple(drop)
    assert example == Example((), (Turn("user", ("R",)),), (Answer("a"), Answer("b")), Origin("f", 3))
    for bare, what in (
        (replace(full, answers=full.answers[:1]), "has 1 answer where 2 are needed"),
        (replace(full, answers=()), "has no answers where 2 are needed"),
        (replace(full, answers=(Answer("a"), Answer("a"))), "has the same answer twice"),
        (replace(full, answers=(Answer("a"), Answer(" "))), "has an empty answer"),
        (
            replace(full, prompt=(Turn("user", ("See <image>", IMAGE)),)),
            "has <image> among its words, and images as well",
        ),
    ):
        with pytest.raises(Unfit, match=what) as caught:
            fitted(bare, holds, list(PARTS))
        assert caught.value.part == "rows"


def test_the_parts_that_may_be_dropped_are_those_of_the_command() -> None:
    from mmlaunch.cli.convert import DROPS

    assert (*PARTS, "rows") == DROPS


def test_a_file_of_rows_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("before")
    with pytest.raises(KeyError), RowFile(path) as file:
        file.write({"a": 1})
        raise KeyError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with RowFile(path) as file:
        file.write({"a": "é", "half": "\ud83d"})
        file.write({"a": "\u2028"})
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == [
        {"a": "é", "half": "\ud83d"},
        {"a": "\u2028"},
    ]
    with RowFile(tmp_path / "rows.json") as file:
        file.write({"a": 1})
        file.write({"b": [2]})
    assert json.loads((tmp_path / "rows.json").read_text()) == [{"a": 1}, {"b": [2]}]
    assert len(list(tmp_path.iterdir())) == 2, "no temporary file is left"
